//! Tokens to the syntax tree.

use super::ParseError;
use super::ast::*;
use super::lexer::{Spanned, Token, lex};

/// Largest number of registers one declaration may introduce, and largest variable: far above what any compiler emits,
/// low enough that hostile text cannot exhaust memory.
const MAX_DECLARED: u64 = 1 << 20;
const MAX_VARIABLE_BYTES: u64 = 1 << 28;
const MAX_NESTING: u32 = 64;

pub fn parse(text: &str) -> Result<Ast, ParseError> {
    let tokens = lex(text)?;
    let mut p = Parser { tokens, at: 0, ast: Ast::default(), loc: (0, 0), used_bytes: None };
    p.module()?;
    Ok(p.ast)
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    ast: Ast,
    loc: (u32, u32),
    used_bytes: Option<u32>,
}

type Res<T> = Result<T, ParseError>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].token
    }

    fn peek_at(&self, ahead: usize) -> &Token {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].token
    }

    fn place(&self) -> Place {
        let t = &self.tokens[self.at.min(self.tokens.len() - 1)];
        Place { line: t.line, column: t.column, file: self.loc.0, source_line: self.loc.1 }
    }

    fn next(&mut self) -> Token {
        let t = self.peek().clone();
        self.at += 1;
        t
    }

    fn error<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(ParseError::at(self.place(), message))
    }

    fn is(&self, c: char) -> bool {
        *self.peek() == Token::Punct(c)
    }

    fn accept(&mut self, c: char) -> bool {
        let yes = self.is(c);
        if yes {
            self.at += 1;
        }
        yes
    }

    fn expect(&mut self, c: char) -> Res<()> {
        if self.accept(c) { Ok(()) } else { self.error(format!("expected `{c}`, found {}", show(self.peek()))) }
    }

    fn word(&mut self) -> Res<String> {
        match self.peek().clone() {
            Token::Word(w) => {
                self.at += 1;
                Ok(w)
            }
            t => self.error(format!("expected a name, found {}", show(&t))),
        }
    }

    fn is_word(&self, w: &str) -> bool {
        matches!(self.peek(), Token::Word(x) if x == w)
    }

    fn accept_word(&mut self, w: &str) -> bool {
        let yes = self.is_word(w);
        if yes {
            self.at += 1;
        }
        yes
    }

    fn int(&mut self) -> Res<u64> {
        match self.peek() {
            Token::Int(v) => {
                let v = *v;
                self.at += 1;
                Ok(v)
            }
            t => self.error(format!("expected an integer, found {}", show(t))),
        }
    }

    fn small_int(&mut self) -> Res<u32> {
        let v = self.int()?;
        u32::try_from(v).or_else(|_| self.error(format!("{v} does not fit 32 bits")))
    }

    fn module(&mut self) -> Res<()> {
        loop {
            let word = match self.peek().clone() {
                Token::End => return Ok(()),
                Token::Word(w) => w,
                t => return self.error(format!("expected a directive, found {}", show(&t))),
            };
            match word.as_str() {
                ".version" => {
                    self.at += 1;
                    match self.next() {
                        // The lexer reads `9.0` as a decimal number.
                        Token::F64(bits) => {
                            let v = f64::from_bits(bits);
                            self.ast.version = (v as u32, ((v * 10.0).round() as u32) % 10);
                        }
                        t => return self.error(format!("expected a version, found {}", show(&t))),
                    }
                }
                ".target" => {
                    self.at += 1;
                    self.ast.target = self.word()?;
                    while self.accept(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.int()? != 64 {
                        return self.error("only 64-bit addresses are supported");
                    }
                }
                ".file" => self.file()?,
                ".section" => self.section()?,
                ".pragma" => {
                    self.at += 1;
                    self.next();
                    self.expect(';')?;
                }
                ".loc" => self.location()?,
                _ => self.declaration()?,
            }
        }
    }

    fn file(&mut self) -> Res<()> {
        self.at += 1;
        let index = self.small_int()?;
        match self.next() {
            Token::Str(s) => self.ast.files.insert(index, s),
            t => return self.error(format!("expected a file name, found {}", show(&t))),
        };
        while self.accept(',') {
            self.int()?;
        }
        Ok(())
    }

    /// Debug sections hold DWARF bytes, no code.
    fn section(&mut self) -> Res<()> {
        self.at += 1;
        while !self.is('{') {
            if *self.peek() == Token::End {
                return self.error("section without a body");
            }
            self.at += 1;
        }
        let mut depth = 0u32;
        loop {
            match self.next() {
                Token::Punct('{') => depth += 1,
                Token::Punct('}') => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                Token::End => return self.error("section without end"),
                _ => {}
            }
        }
    }

    fn location(&mut self) -> Res<()> {
        self.at += 1;
        let file = self.small_int()?;
        let line = self.small_int()?;
        self.int()?;
        // Line 0 marks code without a line of its own: the place before it is the better answer.
        if line != 0 {
            self.loc = (file, line);
        }
        while self.accept(',') {
            match self.word()?.as_str() {
                "function_name" => {
                    self.word()?;
                    if self.accept('+') {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    self.int()?;
                    self.int()?;
                    self.int()?;
                }
                w => return self.error(format!("unknown `.loc` attribute `{w}`")),
            }
        }
        Ok(())
    }

    fn declaration(&mut self) -> Res<()> {
        let place = self.place();
        let mut external = false;
        loop {
            let w = self.word()?;
            match w.as_str() {
                ".extern" => external = true,
                ".visible" | ".weak" | ".common" => {}
                ".entry" | ".func" => {
                    let f = self.function(w == ".entry", place)?;
                    // A definition replaces an earlier prototype.
                    match self.ast.functions.iter().position(|g| g.name == f.name) {
                        Some(i) if f.body.is_some() && self.ast.functions[i].body.is_some() => {
                            return Err(ParseError::at(place, format!("function `{}` is defined twice", f.name)));
                        }
                        Some(i) if f.body.is_some() => self.ast.functions[i] = f,
                        Some(_) => {}
                        None => self.ast.functions.push(f),
                    }
                    return Ok(());
                }
                ".global" | ".const" | ".shared" => {
                    let space = match w.as_str() {
                        ".global" => Space::Global,
                        ".const" => Space::Const,
                        _ => Space::Shared,
                    };
                    let vars = self.variables(space, external)?;
                    self.ast.vars.extend(vars);
                    return Ok(());
                }
                _ => return Err(ParseError::at(place, format!("unknown directive `{w}`"))),
            }
        }
    }

    fn function(&mut self, entry: bool, place: Place) -> Res<Function> {
        let mut returns = Vec::new();
        while self.accept_word(".noreturn") {}
        if !entry && self.is('(') {
            returns = self.parameters()?;
        }
        let name = self.word()?;
        let params = if self.is('(') { self.parameters()? } else { Vec::new() };
        let mut limits = Limits::default();
        loop {
            match self.peek().clone() {
                Token::Word(w) => {
                    self.at += 1;
                    match w.as_str() {
                        ".maxntid" => limits.max_threads = Some(self.triple()?),
                        ".reqntid" => limits.exact_threads = Some(self.triple()?),
                        ".reqnctapercluster" => limits.cluster = Some(self.triple()?),
                        ".explicitcluster" | ".noreturn" | ".blocksareclusters" => {}
                        ".maxnreg" => limits.max_registers = Some(self.small_int()?),
                        ".minnctapersm" | ".maxnctapersm" | ".maxclusterrank" => {
                            self.int()?;
                        }
                        ".attribute" => {
                            self.expect('(')?;
                            while !self.accept(')') {
                                if *self.peek() == Token::End {
                                    return self.error("attribute list without end");
                                }
                                self.at += 1;
                            }
                        }
                        ".pragma" => {
                            self.next();
                            self.expect(';')?;
                        }
                        _ => return Err(ParseError::at(place, format!("unknown function directive `{w}`"))),
                    }
                }
                Token::Punct(';') => {
                    self.at += 1;
                    return Ok(Function { name, entry, returns, params, body: None, limits, place });
                }
                Token::Punct('{') => {
                    self.at += 1;
                    let body = self.body()?;
                    return Ok(Function { name, entry, returns, params, body: Some(body), limits, place });
                }
                t => return self.error(format!("expected a function body, found {}", show(&t))),
            }
        }
    }

    fn triple(&mut self) -> Res<[u32; 3]> {
        let mut out = [1; 3];
        out[0] = self.small_int()?;
        for slot in &mut out[1..] {
            if !self.accept(',') {
                break;
            }
            *slot = self.small_int()?;
        }
        Ok(out)
    }

    fn parameters(&mut self) -> Res<Vec<Var>> {
        self.expect('(')?;
        let mut out = Vec::new();
        if self.accept(')') {
            return Ok(out);
        }
        loop {
            let place = self.place();
            match self.word()?.as_str() {
                ".param" => out.extend(self.variables_until(Space::Param, false)?),
                ".reg" => return Err(ParseError::at(place, "`.reg` parameters are not supported")),
                w => return Err(ParseError::at(place, format!("expected `.param`, found `{w}`"))),
            }
            if self.accept(')') {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }

    fn variables(&mut self, space: Space, external: bool) -> Res<Vec<Var>> {
        let mut out = self.variables_until(space, external)?;
        while self.accept(',') {
            let mut again = out[0].clone();
            again.init.clear();
            self.declarator(&mut again)?;
            out.push(again);
        }
        self.expect(';')?;
        Ok(out)
    }

    /// The type part and the first declarator.
    fn variables_until(&mut self, space: Space, external: bool) -> Res<Vec<Var>> {
        let place = self.place();
        let mut align = 0;
        let mut lanes = 1;
        loop {
            let w = self.word()?;
            let Some(name) = w.strip_prefix('.') else {
                return Err(ParseError::at(place, format!("expected a type, found `{w}`")));
            };
            match name {
                "align" => {
                    align = self.small_int()?;
                    if !align.is_power_of_two() || align > 4096 {
                        return self.error(format!("alignment {align} is not a power of two up to 4096"));
                    }
                }
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                "ptr" => {
                    // Attributes of a pointer parameter: a space and an alignment, for the optimiser only.
                    while matches!(self.peek(), Token::Word(w) if [".global", ".shared", ".const", ".local", ".align"].contains(&w.as_str()))
                    {
                        if self.word()? == ".align" {
                            self.int()?;
                        }
                    }
                }
                "attribute" => {
                    self.expect('(')?;
                    while !self.accept(')') {
                        if *self.peek() == Token::End {
                            return self.error("attribute list without end");
                        }
                        self.at += 1;
                    }
                }
                _ => {
                    let Some(ty) = Ty::parse(name) else {
                        return Err(ParseError::at(place, format!("unknown type `.{name}`")));
                    };
                    // `.param .b64 .ptr .align 1 name`
                    while self.is_word(".ptr") {
                        self.at += 1;
                        while matches!(self.peek(), Token::Word(w) if [".global", ".shared", ".const", ".local", ".align"].contains(&w.as_str()))
                        {
                            if self.word()? == ".align" {
                                self.int()?;
                            }
                        }
                    }
                    let size = ty.bytes() * lanes;
                    let mut v = Var {
                        space,
                        name: String::new(),
                        align: if align == 0 { size } else { align },
                        ty,
                        bytes: u64::from(size),
                        init: Vec::new(),
                        external,
                        place,
                    };
                    self.declarator(&mut v)?;
                    return Ok(vec![v]);
                }
            }
        }
    }

    fn declarator(&mut self, v: &mut Var) -> Res<()> {
        v.place = self.place();
        v.name = self.word()?;
        let element = u64::from(v.ty.bytes());
        let mut bytes = v.bytes.max(element);
        let mut open = false;
        while self.accept('[') {
            if self.accept(']') {
                open = true;
                continue;
            }
            let n = self.int()?;
            bytes = bytes
                .checked_mul(n)
                .filter(|b| *b <= MAX_VARIABLE_BYTES)
                .map_or_else(|| self.error("variable too large"), Ok)?;
            self.expect(']')?;
        }
        v.bytes = if open { 0 } else { bytes };
        if self.accept('=') {
            self.initialiser(&mut v.init, 0)?;
            if open {
                v.bytes = v.init.len() as u64 * element;
            }
        }
        Ok(())
    }

    fn initialiser(&mut self, out: &mut Vec<Init>, depth: u32) -> Res<()> {
        if depth > MAX_NESTING {
            return self.error("initialiser nested too deeply");
        }
        if self.accept('{') {
            while !self.accept('}') {
                self.initialiser(out, depth + 1)?;
                if !self.is('}') {
                    self.expect(',')?;
                }
            }
            return Ok(());
        }
        let negative = self.accept('-');
        let item = match self.next() {
            Token::Int(v) => Init::Int(if negative { v.wrapping_neg() } else { v }),
            Token::F32(b) => Init::F32(b ^ (u32::from(negative) << 31)),
            Token::F64(b) => Init::F64(b ^ (u64::from(negative) << 63)),
            Token::Word(w) if w == "generic" => {
                self.expect('(')?;
                let name = self.word()?;
                self.expect(')')?;
                Init::Symbol { name, offset: self.offset()?, generic: true }
            }
            Token::Word(name) => Init::Symbol { name, offset: self.offset()?, generic: false },
            t => return self.error(format!("expected an initial value, found {}", show(&t))),
        };
        out.push(item);
        Ok(())
    }

    fn offset(&mut self) -> Res<i64> {
        let mut sum = 0i64;
        while self.is('+') || self.is('-') {
            let minus = self.accept('-');
            if !minus {
                self.at += 1;
            }
            let inner_minus = self.accept('-');
            let v = self.int()? as i64;
            sum = sum.wrapping_add(if minus != inner_minus { v.wrapping_neg() } else { v });
        }
        Ok(sum)
    }

    fn body(&mut self) -> Res<Vec<Stmt>> {
        let mut out = Vec::new();
        let mut depth = 0u32;
        self.loc = (0, 0);
        loop {
            match self.peek().clone() {
                Token::Punct('{') => {
                    self.at += 1;
                    depth += 1;
                    if depth > MAX_NESTING {
                        return self.error("blocks nested too deeply");
                    }
                    out.push(Stmt::Open);
                }
                Token::Punct('}') => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(out);
                    }
                    depth -= 1;
                    out.push(Stmt::Close);
                }
                Token::Punct(';') => self.at += 1,
                Token::Punct('@') => out.push(Stmt::Inst(self.instruction()?)),
                Token::Word(w) => self.statement(&w, &mut out)?,
                t => return self.error(format!("expected an instruction, found {}", show(&t))),
            }
        }
    }

    fn statement(&mut self, w: &str, out: &mut Vec<Stmt>) -> Res<()> {
        match w {
            ".reg" => {
                self.at += 1;
                let ty = self.word()?;
                let Some(ty) = ty.strip_prefix('.').and_then(Ty::parse) else {
                    return self.error(format!("unknown register type `{ty}`"));
                };
                loop {
                    let name = self.word()?;
                    let mut count = None;
                    if self.accept('<') {
                        let n = self.int()?;
                        if n > MAX_DECLARED {
                            return self.error("too many registers");
                        }
                        count = Some(n as u32);
                        self.expect('>')?;
                    }
                    out.push(Stmt::Reg { name, ty, count });
                    if !self.accept(',') {
                        break;
                    }
                }
                self.expect(';')
            }
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                self.at += 1;
                let space = match w {
                    ".local" => Space::Local,
                    ".shared" => Space::Shared,
                    ".param" => Space::Param,
                    ".global" => Space::Global,
                    _ => Space::Const,
                };
                out.extend(self.variables(space, false)?.into_iter().map(Stmt::Var));
                Ok(())
            }
            ".loc" => self.location(),
            ".pragma" => {
                self.at += 1;
                if let Token::Str(s) = self.next()
                    && let Some(mask) = s.strip_prefix("used_bytes_mask ")
                {
                    let mask = mask.trim();
                    self.used_bytes = match mask.strip_prefix("0x") {
                        Some(hex) => u32::from_str_radix(hex, 16).ok(),
                        None => mask.parse().ok(),
                    };
                }
                self.expect(';')
            }
            _ if *self.peek_at(1) == Token::Punct(':') => {
                self.at += 2;
                if self.accept_word(".branchtargets") {
                    let mut labels = vec![self.word()?];
                    while self.accept(',') {
                        labels.push(self.word()?);
                    }
                    self.expect(';')?;
                    out.push(Stmt::Targets { name: w.to_string(), labels });
                } else if self.is_word(".callprototype") {
                    while !self.accept(';') {
                        if *self.peek() == Token::End {
                            return self.error("prototype without end");
                        }
                        self.at += 1;
                    }
                    out.push(Stmt::Prototype);
                } else {
                    out.push(Stmt::Label(w.to_string()));
                }
                Ok(())
            }
            _ if w.starts_with('.') => self.error(format!("unknown directive `{w}`")),
            _ => {
                let inst = self.instruction()?;
                out.push(Stmt::Inst(inst));
                Ok(())
            }
        }
    }

    fn instruction(&mut self) -> Res<Inst> {
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.word()?, negated));
        }
        let place = self.place();
        let opcode = self.word()?;
        let mut operands = Vec::new();
        if !self.is(';') {
            loop {
                operands.push(self.operand(0)?);
                if !self.accept(',') {
                    break;
                }
            }
        }
        self.expect(';')?;
        let used_bytes = self.used_bytes.take();
        Ok(Inst { guard, opcode, operands, place, used_bytes })
    }

    fn operand(&mut self, depth: u32) -> Res<Operand> {
        if depth > MAX_NESTING {
            return self.error("operand nested too deeply");
        }
        let first = self.primary(depth)?;
        if self.accept('|') {
            let second = self.primary(depth)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        if self.is('+') || (self.is('-') && matches!(first, Operand::Name(_))) {
            let offset = self.offset()?;
            return Ok(Operand::Sum(Box::new(first), offset));
        }
        Ok(first)
    }

    fn primary(&mut self, depth: u32) -> Res<Operand> {
        match self.next() {
            Token::Word(w) if w == "_" => Ok(Operand::Sink),
            Token::Word(w) => Ok(Operand::Name(w)),
            Token::Int(v) => Ok(Operand::Int(v)),
            Token::F32(v) => Ok(Operand::F32(v)),
            Token::F64(v) => Ok(Operand::F64(v)),
            Token::Punct('-') => match self.primary_checked(depth)? {
                Operand::Int(v) => Ok(Operand::Int(v.wrapping_neg())),
                Operand::F32(v) => Ok(Operand::F32(v ^ (1 << 31))),
                Operand::F64(v) => Ok(Operand::F64(v ^ (1 << 63))),
                other => Ok(Operand::Neg(Box::new(other))),
            },
            Token::Punct('!') => Ok(Operand::Not(Box::new(self.primary_checked(depth)?))),
            Token::Punct('{') => Ok(Operand::Vector(self.list('}', depth)?)),
            Token::Punct('(') => Ok(Operand::List(self.list(')', depth)?)),
            Token::Punct('[') => {
                let mut items = self.list(']', depth)?;
                if items.is_empty() {
                    return self.error("empty address");
                }
                let head = items.remove(0);
                Ok(Operand::Address(Box::new(head), items))
            }
            t => {
                self.at -= 1;
                self.error(format!("expected an operand, found {}", show(&t)))
            }
        }
    }

    fn primary_checked(&mut self, depth: u32) -> Res<Operand> {
        if depth > MAX_NESTING {
            return self.error("operand nested too deeply");
        }
        self.primary(depth + 1)
    }

    fn list(&mut self, close: char, depth: u32) -> Res<Vec<Operand>> {
        let mut out = Vec::new();
        if self.accept(close) {
            return Ok(out);
        }
        loop {
            out.push(self.operand(depth + 1)?);
            if self.accept(close) {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }
}

fn show(t: &Token) -> String {
    match t {
        Token::Word(w) => format!("`{w}`"),
        Token::Int(v) => format!("`{v}`"),
        Token::F32(b) => format!("`0f{b:08X}`"),
        Token::F64(b) => format!("`0d{b:016X}`"),
        Token::Str(s) => format!("{s:?}"),
        Token::Punct(c) => format!("`{c}`"),
        Token::End => "the end of the text".into(),
    }
}

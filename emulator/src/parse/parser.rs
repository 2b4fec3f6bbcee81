//! Tokens to the syntax tree.

use std::collections::HashMap;

use super::ParseError;
use super::ast::*;
use super::lexer::{Spanned, Token, lex};

/// Most registers that one declaration may introduce, and deepest nesting: far above what any compiler emits, low enough that
/// hostile text exhausts neither memory nor stack.
const MAX_DECLARED: u64 = 1 << 20;
pub(super) const MAX_NESTING: u32 = 64;

pub fn parse(text: &str) -> Result<Ast, ParseError> {
    let tokens = lex(text)?;
    let mut p =
        Parser { tokens, at: 0, ast: Ast::default(), loc: Loc::default(), sites: HashMap::new(), used_bytes: None };
    p.ast.inlines.push(Vec::new());
    p.module()?;
    Ok(p.ast)
}

#[derive(Clone, Copy, Default)]
struct Loc {
    file: u32,
    line: u32,
    inlined: u32,
}

pub(super) struct Parser {
    tokens: Vec<Spanned>,
    pub(super) at: usize,
    pub(super) ast: Ast,
    loc: Loc,
    /// Where each `.loc` so far was inlined: its chain of call sites.
    sites: HashMap<(u32, u32, u32), u32>,
    used_bytes: Option<u32>,
}

pub(super) type Res<T> = Result<T, ParseError>;

impl Parser {
    pub(super) fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].token
    }

    pub(super) fn peek_at(&self, ahead: usize) -> &Token {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].token
    }

    pub(super) fn place(&self) -> Place {
        let t = &self.tokens[self.at.min(self.tokens.len() - 1)];
        Place {
            line: t.line,
            column: t.column,
            file: self.loc.file,
            source_line: self.loc.line,
            inlined: self.loc.inlined,
        }
    }

    pub(super) fn next(&mut self) -> Token {
        let t = self.peek().clone();
        self.at += 1;
        t
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Res<T> {
        Err(ParseError::at(self.place(), message))
    }

    pub(super) fn is(&self, c: char) -> bool {
        *self.peek() == Token::Punct(c)
    }

    pub(super) fn accept(&mut self, c: char) -> bool {
        let yes = self.is(c);
        if yes {
            self.at += 1;
        }
        yes
    }

    pub(super) fn expect(&mut self, c: char) -> Res<()> {
        if self.accept(c) { Ok(()) } else { self.error(format!("expected `{c}`, found {}", show(self.peek()))) }
    }

    pub(super) fn word(&mut self) -> Res<String> {
        match self.peek().clone() {
            Token::Word(w) => {
                self.at += 1;
                Ok(w)
            }
            t => self.error(format!("expected a name, found {}", show(&t))),
        }
    }

    pub(super) fn is_word(&self, w: &str) -> bool {
        matches!(self.peek(), Token::Word(x) if x == w)
    }

    pub(super) fn accept_word(&mut self, w: &str) -> bool {
        let yes = self.is_word(w);
        if yes {
            self.at += 1;
        }
        yes
    }

    pub(super) fn int(&mut self) -> Res<u64> {
        match self.peek() {
            Token::Int(v) => {
                let v = *v;
                self.at += 1;
                Ok(v)
            }
            t => self.error(format!("expected an integer, found {}", show(t))),
        }
    }

    pub(super) fn small_int(&mut self) -> Res<u32> {
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
        let column = self.small_int()?;
        let mut inlined = 0;
        while self.accept(',') {
            match self.word()?.as_str() {
                "function_name" => {
                    self.word()?;
                    if self.accept('+') {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    let site = (self.small_int()?, self.small_int()?, self.small_int()?);
                    inlined = self.inlined_at(site);
                }
                w => return self.error(format!("unknown `.loc` attribute `{w}`")),
            }
        }
        // Line 0 marks code without a line of its own: the place before it is the better answer.
        if line != 0 {
            self.loc = Loc { file, line, inlined };
            self.sites.insert((file, line, column), inlined);
        }
        Ok(())
    }

    /// The chain of call sites that starts with this one.
    fn inlined_at(&mut self, site: (u32, u32, u32)) -> u32 {
        let outer = self.sites.get(&site).copied().unwrap_or(0);
        let mut chain = vec![(site.0, site.1)];
        chain.extend_from_slice(&self.ast.inlines[outer as usize]);
        chain.truncate(MAX_NESTING as usize);
        // Chains repeat in runs: looking at the newest few keeps the table small without a map.
        let newest = self.ast.inlines.len().saturating_sub(16);
        if let Some(i) = self.ast.inlines[newest..].iter().position(|c| *c == chain) {
            return (newest + i) as u32;
        }
        self.ast.inlines.push(chain);
        (self.ast.inlines.len() - 1) as u32
    }

    pub(super) fn body(&mut self) -> Res<Vec<Stmt>> {
        let mut out = Vec::new();
        let mut depth = 0u32;
        self.loc = Loc::default();
        self.sites.clear();
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

pub(super) fn show(t: &Token) -> String {
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

//! Directives at module level: variables, functions, parameters, initial values.

use super::ParseError;
use super::ast::*;
use super::lexer::Token;
use super::parser::{MAX_NESTING, Parser, Res, show};

/// Largest variable: far above what any compiler emits, low enough that hostile text cannot exhaust memory.
const MAX_VARIABLE_BYTES: u64 = 1 << 28;

impl Parser {
    pub(super) fn declaration(&mut self) -> Res<()> {
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

    pub(super) fn function(&mut self, entry: bool, place: Place) -> Res<Function> {
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
                        ".minnctapersm" => limits.min_blocks = Some(self.small_int()?),
                        ".maxnctapersm" | ".maxclusterrank" => {
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

    pub(super) fn triple(&mut self) -> Res<[u32; 3]> {
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

    pub(super) fn parameters(&mut self) -> Res<Vec<Var>> {
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

    pub(super) fn variables(&mut self, space: Space, external: bool) -> Res<Vec<Var>> {
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
    pub(super) fn variables_until(&mut self, space: Space, external: bool) -> Res<Vec<Var>> {
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

    pub(super) fn declarator(&mut self, v: &mut Var) -> Res<()> {
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

    pub(super) fn initialiser(&mut self, out: &mut Vec<Init>, depth: u32) -> Res<()> {
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

    pub(super) fn offset(&mut self) -> Res<i64> {
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
}

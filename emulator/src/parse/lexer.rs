//! Text to tokens. Every token knows its line and column.

use super::ParseError;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// A name, an opcode with its modifiers, a register, or a directive (which starts with a dot).
    Word(String),
    Int(u64),
    /// The bits of a `0f…` literal.
    F32(u32),
    /// The bits of a `0d…` literal, or of a decimal literal.
    F64(u64),
    Str(String),
    Punct(char),
    End,
}

#[derive(Debug, Clone)]
pub struct Spanned {
    pub token: Token,
    pub line: u32,
    pub column: u32,
}

pub fn lex(text: &str) -> Result<Vec<Spanned>, ParseError> {
    Lexer { bytes: text.as_bytes(), at: 0, line: 1, line_start: 0 }.run()
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

fn starts_word(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn continues_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.')
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.line, self.column(), message)
    }

    fn column(&self) -> u32 {
        (self.at - self.line_start + 1) as u32
    }

    fn newline(&mut self) {
        self.line += 1;
        self.line_start = self.at + 1;
    }

    fn run(mut self) -> Result<Vec<Spanned>, ParseError> {
        let mut out = Vec::new();
        loop {
            self.skip_blank()?;
            let (line, column) = (self.line, self.column());
            let token = self.token()?;
            let end = token == Token::End;
            out.push(Spanned { token, line, column });
            if end {
                return Ok(out);
            }
        }
    }

    fn skip_blank(&mut self) -> Result<(), ParseError> {
        while self.at < self.bytes.len() {
            match self.peek(0) {
                b'\n' => {
                    self.newline();
                    self.at += 1;
                }
                c if c.is_ascii_whitespace() => self.at += 1,
                b'/' if self.peek(1) == b'/' => {
                    while self.at < self.bytes.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                b'/' if self.peek(1) == b'*' => {
                    self.at += 2;
                    while !(self.peek(0) == b'*' && self.peek(1) == b'/') {
                        if self.at >= self.bytes.len() {
                            return Err(self.error("comment without end"));
                        }
                        if self.peek(0) == b'\n' {
                            self.newline();
                        }
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn token(&mut self) -> Result<Token, ParseError> {
        if self.at >= self.bytes.len() {
            return Ok(Token::End);
        }
        let c = self.peek(0);
        if c.is_ascii_digit() {
            return self.number();
        }
        if c == b'"' {
            return self.string();
        }
        if starts_word(c) {
            let start = self.at;
            self.at += 1;
            loop {
                // `.reg.b32` is two directives; an opcode keeps its modifiers.
                if c == b'.' && self.peek(0) == b'.' {
                    break;
                }
                if continues_word(self.peek(0)) {
                    self.at += 1;
                } else if self.peek(0) == b':' && self.peek(1) == b':' && continues_word(self.peek(2)) {
                    self.at += 2;
                } else {
                    break;
                }
            }
            return Ok(Token::Word(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()));
        }
        if b"{}[]()<>,;:+-*/!@|&=~^?".contains(&c) {
            self.at += 1;
            return Ok(Token::Punct(c as char));
        }
        Err(self.error(format!("unexpected character {:?}", char::from(c))))
    }

    fn string(&mut self) -> Result<Token, ParseError> {
        self.at += 1;
        let start = self.at;
        while self.peek(0) != b'"' {
            if self.at >= self.bytes.len() || self.peek(0) == b'\n' {
                return Err(self.error("string without end"));
            }
            self.at += if self.peek(0) == b'\\' { 2 } else { 1 };
        }
        let end = self.at.min(self.bytes.len());
        self.at += 1;
        Ok(Token::Str(String::from_utf8_lossy(&self.bytes[start..end]).into_owned()))
    }

    fn number(&mut self) -> Result<Token, ParseError> {
        let start = self.at;
        let hex_float = self.peek(0) == b'0' && matches!(self.peek(1), b'f' | b'F' | b'd' | b'D');
        while self.peek(0).is_ascii_alphanumeric()
            || self.peek(0) == b'.'
            || (matches!(self.peek(0), b'+' | b'-')
                && !hex_float
                && self.decimal_so_far(start)
                && matches!(self.bytes[self.at - 1], b'e' | b'E'))
        {
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        let bad = |me: &Self| me.error(format!("malformed number `{text}`"));
        if hex_float {
            let bits = u64::from_str_radix(&text[2..], 16).map_err(|_| bad(self))?;
            let single = matches!(text.as_bytes()[1], b'f' | b'F');
            if text.len() != if single { 10 } else { 18 } {
                return Err(bad(self));
            }
            return Ok(if single { Token::F32(bits as u32) } else { Token::F64(bits) });
        }
        let lower = text.to_ascii_lowercase();
        let digits = lower.strip_suffix('u').unwrap_or(&lower);
        let value = if let Some(hex) = digits.strip_prefix("0x") {
            u64::from_str_radix(hex, 16)
        } else if let Some(bin) = digits.strip_prefix("0b") {
            u64::from_str_radix(bin, 2)
        } else if digits.contains('.') || digits.contains('e') {
            return digits.parse::<f64>().map(|v| Token::F64(v.to_bits())).map_err(|_| bad(self));
        } else if digits.len() > 1 && digits.starts_with('0') {
            u64::from_str_radix(digits, 8)
        } else {
            digits.parse::<u64>()
        };
        value.map(Token::Int).map_err(|_| bad(self))
    }

    fn decimal_so_far(&self, start: usize) -> bool {
        !matches!(self.bytes.get(start + 1), Some(b'x' | b'X'))
    }
}

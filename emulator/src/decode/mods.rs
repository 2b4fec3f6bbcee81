//! The dotted parts of an opcode. Each must be consumed: what is left over is unknown, and an error.

use crate::numerics::format::Rnd;
use crate::parse::ast::Ty;

pub struct Mods<'a> {
    pub opcode: &'a str,
    pub name: &'a str,
    parts: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub fn new(opcode: &'a str) -> Self {
        let mut it = opcode.split('.');
        let name = it.next().unwrap_or("");
        Mods { opcode, name, parts: it.collect() }
    }

    /// Consumes a modifier if it is there, wherever it stands.
    pub fn has(&mut self, m: &str) -> bool {
        match self.parts.iter().position(|p| *p == m) {
            Some(i) => {
                self.parts.remove(i);
                true
            }
            None => false,
        }
    }

    /// Consumes the first of these modifiers that is there.
    pub fn one<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(m, _)| self.has(m)).map(|&(_, v)| v)
    }

    /// Consumes the next type, in order of writing.
    pub fn ty(&mut self) -> Option<Ty> {
        let i = self.parts.iter().position(|p| Ty::parse(p).is_some())?;
        Ty::parse(self.parts.remove(i))
    }

    pub fn next(&mut self) -> Option<&'a str> {
        if self.parts.is_empty() { None } else { Some(self.parts.remove(0)) }
    }

    pub fn rnd(&mut self) -> Option<Rnd> {
        self.one(&[("rn", Rnd::Near), ("rz", Rnd::Zero), ("rm", Rnd::Down), ("rp", Rnd::Up)])
    }

    pub fn integer_rnd(&mut self) -> Option<Rnd> {
        self.one(&[("rni", Rnd::Near), ("rzi", Rnd::Zero), ("rmi", Rnd::Down), ("rpi", Rnd::Up)])
    }

    pub fn left(&self) -> Option<&'a str> {
        self.parts.first().copied()
    }
}

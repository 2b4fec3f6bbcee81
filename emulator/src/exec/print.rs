//! `printf` and `assert` on the device.

use std::fmt::Write;

use super::block::{Block, Step, stop};
use super::special::space_of;
use super::step::Flow;
use super::warp::{Warp, lanes};
use crate::check::fault::FaultKind;
use crate::decode::program::*;
use crate::parse::ast::Space;

const LONGEST: usize = 1 << 16;

impl Block<'_> {
    pub fn builtin(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        builtin: Builtin,
        site: &CallSite,
        active: u32,
    ) -> Step<Flow> {
        let base = warp.frames[frame].base;
        for l in lanes(active) {
            let args: Vec<u64> = site
                .args
                .iter()
                .map(|&(offset, n)| self.local_value(warp, l, u64::from(base + offset), n.min(8) as usize))
                .collect();
            match builtin {
                Builtin::Printf => {
                    let format = self.text(warp, l, args.first().copied().unwrap_or(0));
                    let values = args.get(1).copied().unwrap_or(0);
                    let line = self.format(warp, l, &format, values);
                    self.printed.push_str(&line);
                    if let Some(&(offset, _)) = site.results.first() {
                        let at = l * warp.local_bytes as usize + (base + offset) as usize;
                        if let Some(slot) = warp.local.get_mut(at..at + 4) {
                            slot.copy_from_slice(&0u32.to_le_bytes());
                            warp.local_init[at..at + 4].fill(1);
                        }
                    }
                }
                Builtin::AssertFail => {
                    let text = |i: usize| self.text(warp, l, args.get(i).copied().unwrap_or(0));
                    let kind = FaultKind::Assertion {
                        message: text(0),
                        file: text(1),
                        line: args.get(2).copied().unwrap_or(0) as u32,
                        function: text(3),
                    };
                    return stop(kind, Some(l));
                }
            }
        }
        Ok(Flow::Next)
    }

    fn local_value(&self, warp: &Warp, lane: usize, at: u64, n: usize) -> u64 {
        let start = lane * warp.local_bytes as usize + at as usize;
        let mut b = [0; 8];
        if let Some(s) = warp.local.get(start..start + n)
            && at + n as u64 <= u64::from(warp.local_bytes)
        {
            b[..n].copy_from_slice(s);
        }
        u64::from_le_bytes(b)
    }

    fn byte(&self, warp: &Warp, lane: usize, address: u64) -> Option<u8> {
        let at = address & !WINDOW_MASK;
        match space_of(address) {
            Space::Local => Some(self.local_value(warp, lane, at, 1) as u8),
            Space::Const => self.env.constants.get(at as usize).copied(),
            Space::Shared => self.shared.data.get(at as usize).copied(),
            _ => {
                let i = self.env.view.locate(address, 1, &mut 0)?;
                let a = &self.env.view.allocations[i];
                Some(a.read(address - a.base, 1) as u8)
            }
        }
    }

    fn text(&self, warp: &Warp, lane: usize, address: u64) -> String {
        let mut bytes = Vec::new();
        while let Some(b) = self.byte(warp, lane, address.wrapping_add(bytes.len() as u64)) {
            if b == 0 || bytes.len() > LONGEST {
                break;
            }
            bytes.push(b);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn format(&self, warp: &Warp, lane: usize, format: &str, values: u64) -> String {
        let mut out = String::new();
        let mut at = values;
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            if chars.peek() == Some(&'%') {
                chars.next();
                out.push('%');
                continue;
            }
            let (mut left, mut zero, mut plus) = (false, false, false);
            while let Some(&f) = chars.peek() {
                match f {
                    '-' => left = true,
                    '0' => zero = true,
                    '+' => plus = true,
                    ' ' | '#' => {}
                    _ => break,
                }
                chars.next();
            }
            let mut number = || {
                let mut n = None;
                while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                    n = Some((n.unwrap_or(0) * 10 + d as usize).min(4096));
                    chars.next();
                }
                n
            };
            let width = number().unwrap_or(0);
            let mut precision = None;
            if chars.peek() == Some(&'.') {
                chars.next();
                let mut n = 0;
                while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                    n = (n * 10 + d as usize).min(512);
                    chars.next();
                }
                precision = Some(n);
            }
            let mut long = 0;
            while let Some(&m) = chars.peek() {
                match m {
                    'l' | 'z' | 'j' | 't' => long += 1,
                    'h' => {}
                    _ => break,
                }
                chars.next();
            }
            let Some(kind) = chars.next() else { break };
            let wide = long > 0 || matches!(kind, 'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'p' | 's');
            let n: u64 = if wide { 8 } else { 4 };
            at = at.checked_next_multiple_of(n).unwrap_or(0);
            let mut raw = 0;
            for i in (0..n).rev() {
                raw = raw << 8 | u64::from(self.byte(warp, lane, at.wrapping_add(i)).unwrap_or(0));
            }
            at = at.wrapping_add(n);
            let signed = if wide { raw as i64 } else { i64::from(raw as i32) };
            let float = f64::from_bits(raw);
            let mut s = String::new();
            let _ = match kind {
                'd' | 'i' if plus => write!(s, "{signed:+}"),
                'd' | 'i' => write!(s, "{signed}"),
                'u' => write!(s, "{raw}"),
                'x' => write!(s, "{raw:x}"),
                'X' => write!(s, "{raw:X}"),
                'o' => write!(s, "{raw:o}"),
                'c' => write!(s, "{}", (raw as u8) as char),
                'p' => write!(s, "{raw:#x}"),
                's' => write!(s, "{}", self.text(warp, lane, raw)),
                'e' | 'E' => write!(s, "{float:.*e}", precision.unwrap_or(6)),
                'g' | 'G' => write!(s, "{float}"),
                _ => write!(s, "{float:.*}", precision.unwrap_or(6)),
            };
            let pad = width.saturating_sub(s.chars().count());
            if left {
                out.push_str(&s);
                out.extend(std::iter::repeat_n(' ', pad));
            } else if zero {
                let (sign, digits) = match s.strip_prefix('-') {
                    Some(d) => ("-", d),
                    None => ("", s.as_str()),
                };
                out.push_str(sign);
                out.extend(std::iter::repeat_n('0', pad));
                out.push_str(digits);
            } else {
                out.extend(std::iter::repeat_n(' ', pad));
                out.push_str(&s);
            }
        }
        out
    }
}

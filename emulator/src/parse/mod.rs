//! PTX text to a syntax tree.

pub mod ast;
mod declare;
mod lexer;
mod parser;

pub use parser::parse;

/// Why a module was refused, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    pub line: u32,
    pub column: u32,
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, column: u32, message: impl Into<String>) -> Self {
        ParseError { line, column, message: message.into() }
    }

    pub(crate) fn at(place: ast::Place, message: impl Into<String>) -> Self {
        ParseError::new(place.line, place.column, message)
    }
}

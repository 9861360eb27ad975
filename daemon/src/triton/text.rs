//! Protobuf's text format: fields with scalars, messages and lists, in any of the spellings that its printers and people use.

/// A value that can't be read; `line` counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TextError {
    pub line: usize,
    pub what: String,
}

/// One field. A list `f: [1, 2]` is the field twice, as the format defines it.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub name: String,
    pub line: usize,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    /// As written: "-1", "0x10", "1.5e3".
    Number(String),
    /// An enum's value, or `true` or `false`.
    Word(String),
    Message(Vec<Field>),
}

/// The fields of a whole file, in its order.
pub fn parse(text: &str) -> Result<Vec<Field>, TextError> {
    let mut parser = Parser { rest: text, line: 1 };
    let mut fields = Vec::new();
    while parser.peek().is_some() {
        parser.field(&mut fields, 0)?;
    }
    Ok(fields)
}

/// Messages inside messages, at most.
const DEPTH_MAX: usize = 32;

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    /// The next character that is neither space nor comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            let next = self.rest.chars().next()?;
            if next == '#' {
                self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if next.is_whitespace() {
                self.advance(next.len_utf8());
            } else {
                return Some(next);
            }
        }
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count();
        self.rest = rest;
        taken
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn unexpected<T>(&mut self, wanted: &str) -> Result<T, TextError> {
        let what = match self.peek() {
            Some(found) => format!("expected {wanted}, found '{found}'"),
            None => format!("expected {wanted}, found the end of the file"),
        };
        Err(TextError { line: self.line, what })
    }

    fn while_matching(&mut self, matches: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !matches(c)).unwrap_or(self.rest.len());
        self.advance(end)
    }

    fn field(&mut self, fields: &mut Vec<Field>, depth: usize) -> Result<(), TextError> {
        if !self.peek().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') {
            return self.unexpected("a field's name");
        }
        let line = self.line;
        let name = self.while_matching(|c| c.is_ascii_alphanumeric() || c == '_').to_string();
        let colon = self.take(':');
        let field = |value| Field { name: name.clone(), line, value };
        match self.peek() {
            Some('{' | '<') => fields.push(field(self.message(depth)?)),
            Some('[') => {
                self.advance(1);
                while !self.take(']') {
                    let value = match self.peek() {
                        Some('{' | '<') => self.message(depth)?,
                        _ => self.scalar()?,
                    };
                    fields.push(field(value));
                    if !self.take(',') && self.peek() != Some(']') {
                        return self.unexpected("',' or ']'");
                    }
                }
            }
            _ if colon => fields.push(field(self.scalar()?)),
            _ => return self.unexpected("':' or '{'"),
        }
        // A separator is allowed and means nothing.
        if !self.take(',') {
            self.take(';');
        }
        Ok(())
    }

    fn message(&mut self, depth: usize) -> Result<Value, TextError> {
        if depth == DEPTH_MAX {
            return Err(TextError { line: self.line, what: format!("more than {DEPTH_MAX} messages inside another") });
        }
        let close = if self.take('{') { '}' } else { '>' };
        if close == '>' {
            self.take('<');
        }
        let mut fields = Vec::new();
        while !self.take(close) {
            if self.peek().is_none() {
                return self.unexpected(&format!("'{close}'"));
            }
            self.field(&mut fields, depth + 1)?;
        }
        Ok(Value::Message(fields))
    }

    fn scalar(&mut self) -> Result<Value, TextError> {
        match self.peek() {
            Some('"' | '\'') => {
                // Strings side by side are one.
                let mut text = String::new();
                while let Some(quote @ ('"' | '\'')) = self.peek() {
                    self.string(quote, &mut text)?;
                }
                Ok(Value::Text(text))
            }
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => {
                let number = self.while_matching(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
                Ok(Value::Number(number.to_string()))
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                Ok(Value::Word(self.while_matching(|c| c.is_ascii_alphanumeric() || c == '_').to_string()))
            }
            _ => self.unexpected("a value"),
        }
    }

    fn string(&mut self, quote: char, text: &mut String) -> Result<(), TextError> {
        let line = self.line;
        self.advance(1);
        loop {
            let Some(next) = self.rest.chars().next().filter(|c| *c != '\n') else {
                return Err(TextError { line, what: "the string does not end on its line".to_string() });
            };
            self.advance(next.len_utf8());
            if next == quote {
                return Ok(());
            }
            if next != '\\' {
                text.push(next);
                continue;
            }
            let escaped = self.rest.chars().next();
            text.push(match escaped {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some(same @ ('\\' | '"' | '\'' | '?')) => same,
                _ => {
                    return Err(TextError { line, what: "an escape other than \\n, \\t, \\r, \\\\ and quotes".into() });
                }
            });
            self.advance(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(fields: &[Field]) -> String {
        let value = |value: &Value| match value {
            Value::Text(text) => format!("{text:?}"),
            Value::Number(text) | Value::Word(text) => text.clone(),
            Value::Message(fields) => format!("{{{}}}", shown(fields)),
        };
        fields.iter().map(|f| format!("{}@{}={}", f.name, f.line, value(&f.value))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_spelling_gives_the_same_fields() {
        let cases = [
            ("a: 1 b: 'x' # end", "a@1=1 b@1=\"x\""),
            ("a: [1, -2 ,3]", "a@1=1 a@1=-2 a@1=3"),
            ("a: []", ""),
            ("a { b: X }\nc: { d: 1.5 }; e < f: true >,", "a@1={b@1=X} c@2={d@2=1.5} e@2={f@2=true}"),
            ("a [ { b: 1 }, { b: 2 } ]", "a@1={b@1=1} a@1={b@1=2}"),
            ("a: \"x\"\n 'y\\n'\nb: 0x10", "a@1=\"xy\\n\" b@3=0x10"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(&parse(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let deep = "a{".repeat(40);
        let cases = [
            ("a: 1\nb", "line 2: expected ':' or '{', found the end of the file"),
            ("a: 1\n\n: 2", "line 3: expected a field's name, found ':'"),
            ("a {\n b: 1\n", "line 3: expected '}', found the end of the file"),
            ("a: [1 2]", "line 1: expected ',' or ']', found '2'"),
            ("a: 'x\n'", "line 1: the string does not end on its line"),
            ("a: '\\x00'", "line 1: an escape other than"),
            ("a: }", "line 1: expected a value, found '}'"),
            (&deep, "line 1: more than 32 messages"),
        ];
        for (text, expected) in cases {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.starts_with(expected), "{text}\nsaid: {said}");
        }
    }
}

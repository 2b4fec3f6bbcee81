//! JSON read strictly and in order: a name that comes twice in one object is refused (common readers keep the last, so two
//! programs would see two different files), and objects keep the order of the file, which has a meaning in PEFT's patterns.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Number;

use super::short;
use crate::error::{Error, Result};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| Error::file(path, format!("is not valid JSON: {e}")))
    }

    /// Two-space indented, with a newline at the end.
    pub fn to_pretty(&self) -> Vec<u8> {
        let mut out = serde_json::to_vec_pretty(self).expect("text keys and finite numbers serialise");
        out.push(b'\n');
        out
    }

    /// Null, false, or an empty list or object: what PEFT writes for an option that is not used.
    pub fn is_unset(&self) -> bool {
        match self {
            Json::Null | Json::Bool(false) => true,
            Json::List(items) => items.is_empty(),
            Json::Object(entries) => entries.is_empty(),
            _ => false,
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Json::Text(text.into())
    }

    /// A whole number is written without a fraction. `value` must be finite.
    pub fn number(value: f64) -> Self {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.fract() == 0.0 && value.abs() <= EXACT && !(value == 0.0 && value.is_sign_negative()) {
            return Json::Number(Number::from(value as i64));
        }
        Number::from_f64(value).map_or(Json::Null, Json::Number)
    }
}

/// As in the file, but short enough for a message.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::List(items) if items.len() > 8 => write!(f, "a list of {} values", items.len()),
            Json::Object(entries) if entries.len() > 8 => write!(f, "an object of {} fields", entries.len()),
            other => f.write_str(&short(&serde_json::to_string(other).map_err(|_| fmt::Error)?)),
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(value) => value.serialize(serializer),
            Json::Text(value) => serializer.serialize_str(value),
            Json::List(items) => items.serialize(serializer),
            Json::Object(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                entries.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> std::result::Result<Json, E> {
        Number::from_f64(value).map(Json::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Json, E> {
        Ok(Json::text(value))
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Json, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Json::List(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Json, A::Error> {
        let mut seen = HashSet::new();
        let mut out: Vec<(String, Json)> = Vec::new();
        while let Some((name, value)) = entries.next_entry::<String, Json>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name `{}` comes twice", short(&name))));
            }
            out.push((name, value));
        }
        Ok(Json::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Json> {
        Json::parse(Path::new("x.json"), text.as_bytes())
    }

    #[test]
    fn order_is_kept_and_duplicates_are_refused_at_any_depth() {
        let text = r#"{"b":1,"a":{"z":[null,true,-2,0.5,"t"],"y":{}}}"#;
        assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
        let error = parse(r#"{"a":[{"k":1,"k":1}]}"#).unwrap_err().to_string();
        assert!(error.contains("x.json") && error.contains("`k` comes twice"), "{error}");
    }

    #[test]
    fn nan_depth_and_trailing_text_are_refused() {
        assert!(parse("NaN").is_err() && parse("1e999").is_err() && parse("{} x").is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn numbers_come_back_bit_for_bit() {
        for value in [0.1, 1e-3, 2.0, -0.0, f64::MIN_POSITIVE, 1.797e308, 0.1f32.into(), 1.0 / 3.0, 9.1e15] {
            let text = Json::number(value).to_string();
            let Json::Number(back) = parse(&text).unwrap() else { panic!("{text}") };
            assert_eq!(back.as_f64().unwrap().to_bits(), value.to_bits(), "{text}");
        }
    }
}

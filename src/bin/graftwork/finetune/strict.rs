//! What a file says is read whole or not at all: a field that nobody knows was meant by somebody.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// `value` as a `T` that says all of it. serde can refuse unknown fields by itself only where none is flattened; here a field is unknown if
/// the `T` that was read would not write it.
pub fn read<T: Serialize + DeserializeOwned>(value: &Value) -> Result<T, String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    let known = serde_json::to_value(&read).map_err(|e| e.to_string())?;
    match unknown(value, &known) {
        Some(field) => Err(format!("unknown field `{field}`")),
        None => Ok(read),
    }
}

/// The path of the first field that is in `value` and not in `known`.
fn unknown(value: &Value, known: &Value) -> Option<String> {
    match (value, known) {
        (Value::Object(value), Value::Object(known)) => value.iter().find_map(|(name, inner)| match known.get(name) {
            None => Some(name.clone()),
            Some(known) => unknown(inner, known).map(|path| format!("{name}.{path}")),
        }),
        (Value::Array(value), Value::Array(known)) => value.iter().zip(known).find_map(|(v, k)| unknown(v, k)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Outer {
        #[serde(flatten)]
        inner: Inner,
        #[serde(default)]
        more: Vec<Inner>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        rank: Option<usize>,
    }

    #[test]
    fn fields_that_nobody_knows_are_refused_by_name() {
        let of = |value: Value| read::<Outer>(&value).map(|outer| outer.inner.rank);
        assert_eq!(of(json!({"rank": 4})), Ok(Some(4)));
        assert_eq!(of(json!({"rank": null, "more": [{"rank": 2}]})), Ok(None));
        assert_eq!(of(json!({"rank": 4, "rnak": 5})), Err("unknown field `rnak`".into()));
        assert_eq!(of(json!({"rank": 4, "more": [{"rank": 2, "x": 1}]})), Err("unknown field `more.x`".into()));
        assert!(of(json!({"rank": "four"})).is_err());
    }
}

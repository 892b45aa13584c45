//! The declarations as a JSON Schema (draft 2020-12), with which editors complete and check a file.
//!
//! The schema never refuses a file that [`super::Config::load`] accepts. The loader checks more:
//! limits of values that are written as text, rules of names, keys that depend on one another.

use serde_json::{Map, Value, json};

use super::{
    declaration::{Declaration, Shape, Variant, Variants, plain_text},
    declarations,
};

/// The JSON Schema of the configuration file.
pub fn schema() -> Value {
    let mut schema = object_schema(declarations(), None);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Configuration of Trunkline");
    schema
}

/// An object with these keys and no others; with `type_name`, the variant of that name.
pub(super) fn object_schema(keys: &[Declaration], type_name: Option<&str>) -> Value {
    let mut properties = Map::new();
    let mut required = vec![];
    if let Some(type_name) = type_name {
        properties.insert("@type".to_owned(), json!({ "const": type_name }));
        required.push("@type");
    }
    for key in keys {
        let mut schema = shape_schema(&key.shape);
        schema["description"] = json!(plain_text(&key.meaning));
        if let Shape::Value(value) = &key.shape {
            match &value.default {
                Some(default) => schema["default"] = default.clone(),
                None => required.push(key.name),
            }
        }
        properties.insert(key.name.to_owned(), schema);
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// JSON Schema of a key's value; `null` is the same as a missing key.
fn shape_schema(shape: &Shape) -> Value {
    match shape {
        Shape::Value(value) if value.default.is_none() => value.schema.clone(),
        Shape::Value(value) => {
            let mut schema = value.schema.clone();
            for (keyword, null) in [("type", json!("null")), ("enum", Value::Null)] {
                if let Some(Value::Array(allowed)) = schema.get_mut(keyword) {
                    allowed.push(null);
                }
            }
            schema
        }
        Shape::Group { keys, .. } => {
            let mut schema = object_schema(keys, None);
            schema["type"] = json!(["object", "null"]);
            schema
        }
        Shape::Variants(variants) => {
            let mut allowed = variants_schemas(variants);
            allowed.push(json!({ "type": "null" }));
            let mut schema = json!({ "oneOf": allowed });
            if let Some(default) = variants.default {
                schema["default"] = json!({ "@type": default });
            }
            schema
        }
        Shape::List { item, text } => {
            let mut allowed = match &**item {
                Shape::Variants(variants) => variants_schemas(variants),
                Shape::Group { keys, .. } => vec![object_schema(keys, None)],
                Shape::Value(_) | Shape::List { .. } | Shape::Ignored => vec![json!({})],
            };
            allowed.extend(text.map(|pattern| json!({ "type": "string", "pattern": pattern })));
            let items = match <[Value; 1]>::try_from(allowed) {
                Ok([only]) => only,
                Err(several) => json!({ "oneOf": several }),
            };
            json!({ "type": ["array", "null"], "items": items })
        }
        Shape::Ignored => json!({}),
    }
}

fn variants_schemas(variants: &Variants) -> Vec<Value> {
    let common = object_schema(&variants.common, None);
    let one = |variant: &Variant| {
        let mut schema = object_schema(variant.keys.as_ref()?, Some(variant.name));
        for (name, key) in common["properties"].as_object()? {
            schema["properties"][name] = key.clone();
        }
        schema["description"] = json!(plain_text(variant.meaning));
        Some(schema)
    };
    let mut schemas: Vec<Value> = variants.known.iter().filter_map(one).collect();
    if variants.open {
        let other = json!({ "type": "string", "not": { "enum": variants.names() } });
        schemas.push(json!({
            "type": "object", "properties": { "@type": other }, "required": ["@type"],
        }));
    }
    schemas
}

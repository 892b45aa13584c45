//! One declaration for each key: `settings!` makes from it the field of the struct, its
//! default, its decoder, its part of the effective configuration and its [`Declaration`].
//!
//! ```text
//! settings! {
//!     /// Doc comment of the struct, for Rust.
//!     pub struct Drain checked by check_drain {
//!         /// What the key does. This text is the field's documentation in Rust, the row of
//!         /// docs/configuration.md and the description in the JSON Schema.
//!         pub timeout: Duration = key("timeout", duration(SECOND..=HOUR), 10 * SECOND),
//!     }
//! }
//! ```
//!
//! A key is declared by [`key`] (a default stands in for a missing value and for `null`),
//! [`optional`] (None without a value), [`nullable`] (a default, and None for `null`),
//! [`required`], [`group`], [`group_if`], [`optional_group`], [`flatten`] or [`list`]; the types of
//! values are in [`super::types`]. `checked by` names a function that compares keys with one
//! another.

use std::{collections::BTreeMap, marker::PhantomData};

use serde_json::{Map, Value};

use super::{
    declaration::{Declaration, Shape, ValueShape},
    error::{Problem, wrong_type},
    fields::{Context, Element, Fields},
    types::ValueType,
};

/// The keys of one object. Implemented by `settings!`.
pub(super) trait Settings: Sized {
    /// Reads all keys. What is broken becomes its default, and a violation.
    fn read(fields: &mut Fields<'_>) -> Self;
    /// Writes all keys, with secrets masked.
    fn show(&self) -> Map<String, Value>;
    /// Lists all keys.
    fn describe() -> Vec<Declaration>;
}

/// One declared key, or several that make one field.
pub(super) trait Declared {
    /// The type of the field.
    type Value;
    fn read(&self, fields: &mut Fields<'_>) -> Self::Value;
    fn show(&self, value: &Self::Value, object: &mut Map<String, Value>);
    /// `doc` is the doc comment of the field.
    fn describe(&self, doc: &'static str) -> Vec<Declaration>;
}

macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident $(checked by $check:path)? {
            $( $(#[doc = $doc:literal])* pub $field:ident: $type:ty = $declared:expr, )*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl $crate::config::settings::Settings for $name {
            fn read(fields: &mut $crate::config::fields::Fields<'_>) -> $name {
                use $crate::config::settings::{Declared, of_type};
                #[allow(unused_mut)] // without a check nothing changes them
                let mut settings = $name {
                    $( $field: of_type::<$type, _>($declared).read(fields), )*
                };
                $( $check(&mut settings, fields); )?
                settings
            }

            fn show(&self) -> serde_json::Map<String, serde_json::Value> {
                use $crate::config::settings::{Declared, of_type};
                let mut object = serde_json::Map::new();
                $( of_type::<$type, _>($declared).show(&self.$field, &mut object); )*
                object
            }

            fn describe() -> Vec<$crate::config::declaration::Declaration> {
                use $crate::config::settings::{Declared, of_type};
                let mut keys = Vec::new();
                $(
                    let doc = concat!($($doc, "\n"),*);
                    keys.extend(of_type::<$type, _>($declared).describe(doc));
                )*
                keys
            }
        }

        impl Default for $name {
            fn default() -> $name {
                $crate::config::settings::read_nothing()
            }
        }
    };
}
pub(super) use settings;

/// The settings of an empty document: the defaults.
pub(super) fn read_nothing<T: Settings>() -> T {
    let origins = BTreeMap::new();
    Context::new(&[], &origins, &[]).read(&Value::Object(Map::new()), T::read)
}

/// `declared`, of a field of the type `V`.
pub(super) fn of_type<V, D: Declared<Value = V>>(declared: D) -> D {
    declared
}

/// See [`key`].
pub(super) struct WithDefault<T: ValueType> {
    name: &'static str,
    of: T,
    default: T::Literal,
}

/// A key whose default stands in for a missing value and for `null`.
pub(super) fn key<T: ValueType>(name: &'static str, of: T, default: T::Literal) -> WithDefault<T> {
    WithDefault { name, of, default }
}

impl<T: ValueType> Declared for WithDefault<T> {
    type Value = T::Value;

    fn read(&self, fields: &mut Fields<'_>) -> T::Value {
        let read = fields.value(self.name).and_then(|found| self.of.read(&found));
        read.unwrap_or_else(|| self.of.value_of(&self.default))
    }

    fn show(&self, value: &T::Value, object: &mut Map<String, Value>) {
        object.insert(self.name.to_owned(), self.of.show(value));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let default = self.of.show(&self.of.value_of(&self.default));
        vec![single(self.name, doc, &self.of, Some(default))]
    }
}

/// See [`nullable`] and [`optional`].
pub(super) struct Nullable<T: ValueType> {
    name: &'static str,
    of: T,
    default: Option<T::Literal>,
}

/// A key with a default, for which `null` means None.
pub(super) fn nullable<T: ValueType>(
    name: &'static str,
    of: T,
    default: T::Literal,
) -> Nullable<T> {
    Nullable { name, of, default: Some(default) }
}

/// A key that is None where it is missing, and for `null`.
pub(super) fn optional<T: ValueType>(name: &'static str, of: T) -> Nullable<T> {
    Nullable { name, of, default: None }
}

impl<T: ValueType> Declared for Nullable<T> {
    type Value = Option<T::Value>;

    fn read(&self, fields: &mut Fields<'_>) -> Option<T::Value> {
        let default = self.default.as_ref().filter(|_| !fields.is_null(self.name));
        let read = fields.value(self.name).and_then(|found| self.of.read(&found));
        read.or_else(|| default.map(|default| self.of.value_of(default)))
    }

    fn show(&self, value: &Option<T::Value>, object: &mut Map<String, Value>) {
        let shown = value.as_ref().map_or(Value::Null, |value| self.of.show(value));
        object.insert(self.name.to_owned(), shown);
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let default = self.default.as_ref().map(|default| self.of.value_of(default));
        let default = default.map_or(Value::Null, |default| self.of.show(&default));
        vec![single(self.name, doc, &self.of, Some(default))]
    }
}

/// See [`required`].
pub(super) struct Required<T> {
    name: &'static str,
    of: T,
    expected: &'static str,
}

/// A key that must be there; without it the violation says what is `expected`.
pub(super) fn required<T: ValueType>(
    name: &'static str,
    of: T,
    expected: &'static str,
) -> Required<T> {
    Required { name, of, expected }
}

impl<T: ValueType<Value: Default>> Declared for Required<T> {
    type Value = T::Value;

    fn read(&self, fields: &mut Fields<'_>) -> T::Value {
        let Some(found) = fields.value(self.name) else {
            fields.fail(self.name, Problem::Missing { expected: self.expected.to_owned() });
            return T::Value::default();
        };
        self.of.read(&found).unwrap_or_default()
    }

    fn show(&self, value: &T::Value, object: &mut Map<String, Value>) {
        object.insert(self.name.to_owned(), self.of.show(value));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        vec![single(self.name, doc, &self.of, None)]
    }
}

fn single<T: ValueType>(
    name: &'static str,
    doc: &str,
    of: &T,
    default: Option<Value>,
) -> Declaration {
    let (type_name, range, schema) = (of.name(), of.range(), of.schema());
    Declaration::new(name, doc, Shape::Value(ValueShape { type_name, default, range, schema }))
}

/// See [`described`].
pub(super) struct Described<D> {
    meaning: &'static str,
    declared: D,
}

/// A key of several structs, with its meaning beside its declaration and not in each struct.
pub(super) fn described<D: Declared>(meaning: &'static str, declared: D) -> Described<D> {
    Described { meaning, declared }
}

impl<D: Declared> Declared for Described<D> {
    type Value = D::Value;

    fn read(&self, fields: &mut Fields<'_>) -> D::Value {
        self.declared.read(fields)
    }

    fn show(&self, value: &D::Value, object: &mut Map<String, Value>) {
        self.declared.show(value, object);
    }

    fn describe(&self, _doc: &'static str) -> Vec<Declaration> {
        self.declared.describe(self.meaning)
    }
}

/// See [`group`].
pub(super) struct Group<T> {
    name: &'static str,
    of: PhantomData<T>,
}

/// An object with keys of its own. A missing one is read as an empty one.
pub(super) fn group<T: Settings>(name: &'static str) -> Group<T> {
    Group { name, of: PhantomData }
}

impl<T: Settings> Declared for Group<T> {
    type Value = T;

    fn read(&self, fields: &mut Fields<'_>) -> T {
        fields.group(self.name, T::read)
    }

    fn show(&self, value: &T, object: &mut Map<String, Value>) {
        object.insert(self.name.to_owned(), Value::Object(value.show()));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let shape = Shape::Group { keys: T::describe(), default: None };
        vec![Declaration::new(self.name, doc, shape)]
    }
}

/// See [`optional_group`] and [`group_if`].
pub(super) struct OptionalGroup<T> {
    name: &'static str,
    /// None: the group is set where its object is there.
    is_set: Option<fn(&T) -> bool>,
}

/// An object with keys of its own, None where it is missing.
pub(super) fn optional_group<T: Settings>(name: &'static str) -> OptionalGroup<T> {
    OptionalGroup { name, is_set: None }
}

/// An object with keys of its own, None where `is_set` says that they do not set anything.
pub(super) fn group_if<T: Settings>(
    name: &'static str,
    is_set: fn(&T) -> bool,
) -> OptionalGroup<T> {
    OptionalGroup { name, is_set: Some(is_set) }
}

impl<T: Settings + Default> Declared for OptionalGroup<T> {
    type Value = Option<T>;

    fn read(&self, fields: &mut Fields<'_>) -> Option<T> {
        match self.is_set {
            Some(is_set) => Some(fields.group(self.name, T::read)).filter(is_set),
            None => fields.optional_group(self.name, T::read),
        }
    }

    fn show(&self, value: &Option<T>, object: &mut Map<String, Value>) {
        let shown = match (value, self.is_set) {
            (Some(value), _) => Value::Object(value.show()),
            (None, Some(_)) => Value::Object(T::default().show()),
            (None, None) => Value::Null,
        };
        object.insert(self.name.to_owned(), shown);
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let default = self.is_set.is_none().then_some(Value::Null);
        vec![Declaration::new(self.name, doc, Shape::Group { keys: T::describe(), default })]
    }
}

/// See [`flatten`].
pub(super) struct Flatten<T>(PhantomData<T>);

/// Keys that make a struct of their own, but are in the same object as the others.
pub(super) fn flatten<T: Settings>() -> Flatten<T> {
    Flatten(PhantomData)
}

impl<T: Settings> Declared for Flatten<T> {
    type Value = T;

    fn read(&self, fields: &mut Fields<'_>) -> T {
        T::read(fields)
    }

    fn show(&self, value: &T, object: &mut Map<String, Value>) {
        object.extend(value.show());
    }

    fn describe(&self, _doc: &'static str) -> Vec<Declaration> {
        T::describe()
    }
}

/// See [`list`].
pub(super) struct List<T> {
    name: &'static str,
    expected: &'static str,
    of: PhantomData<T>,
}

/// An array of objects; `expected` describes one of them. Empty where it is missing.
pub(super) fn list<T: Settings>(name: &'static str, expected: &'static str) -> List<T> {
    List { name, expected, of: PhantomData }
}

impl<T: Settings + Default> Declared for List<T> {
    type Value = Vec<T>;

    fn read(&self, fields: &mut Fields<'_>) -> Vec<T> {
        let read = fields.list(self.name, self.expected, |element| match element {
            Element::Object(fields) => Some(T::read(fields)),
            Element::Text(fields, _) => {
                fields.fail("", wrong_type("a string", self.expected));
                None
            }
        });
        // A broken member has a violation, and keeps its place for the paths of others.
        read.into_iter().flatten().map(Option::unwrap_or_default).collect()
    }

    fn show(&self, value: &Vec<T>, object: &mut Map<String, Value>) {
        let shown = value.iter().map(|item| Value::Object(item.show())).collect();
        object.insert(self.name.to_owned(), Value::Array(shown));
    }

    fn describe(&self, doc: &'static str) -> Vec<Declaration> {
        let item = Box::new(Shape::Group { keys: T::describe(), default: None });
        vec![Declaration::new(self.name, doc, Shape::List { item, text: None })]
    }
}

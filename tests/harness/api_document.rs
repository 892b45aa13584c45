//! docs/api.md is the wire API as its comments describe it.
//!
//! `UPDATE_DOCS=1 cargo nextest run --test harness api_document` writes the file.

use std::{collections::HashMap, fmt::Write, fs};

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    ServiceDescriptor,
};
use trunkline_proto::v1::DESCRIPTORS;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");

const HEAD: &str = "\
# The wire API

Every method, message, field and value of `trunkline.v1`, with the comments of
[its files](../proto/trunkline/v1/coordination_service.proto), from which this document is made. A
gateway has the same for [grpcurl](https://github.com/fullstorydev/grpcurl) (`describe`), and the
[README](../README.md) shows it in use. Changes are additive: fields and values are added, and none
is removed or means something else.
";

/// The numbers of these fields in the descriptors, which paths of comments have.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const NESTED_MESSAGES: i32 = 3;
const NESTED_ENUMS: i32 = 4;
const VALUES: i32 = 2;

/// The comments of a file, by the paths of what they describe.
struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptor) -> Comments {
        let info = file.file_descriptor_proto().source_code_info.as_ref().expect("comments");
        let comment = |text: &str| {
            let paragraphs = text
                .split("\n\n")
                .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
            paragraphs.collect::<Vec<_>>().join("\n\n")
        };
        let all = info.location.iter().map(|location| {
            // An empty line of a comment is " " in it.
            let text = location.leading_comments().lines().map(str::trim_end);
            (location.path.clone(), comment(&text.collect::<Vec<_>>().join("\n")))
        });
        Comments(all.collect())
    }

    /// The comment at a path. Everything of the API has one.
    fn at(&self, path: &[i32], name: &str) -> &str {
        let comment = self.0.get(path).map_or("", String::as_str);
        assert!(!comment.is_empty(), "{name} has no comment");
        comment
    }

    fn cell(&self, path: &[i32], name: &str) -> String {
        self.at(path, name).replace("\n\n", "<br>").replace('|', "\\|")
    }
}

fn joined(path: &[i32], more: [i32; 2]) -> Vec<i32> {
    [path, &more].concat()
}

fn number(index: usize) -> i32 {
    i32::try_from(index).expect("a few")
}

/// A link to a message or enum of this document, or its name.
fn link(full_name: &str) -> String {
    match full_name.strip_prefix("trunkline.v1.") {
        Some(name) => format!("[{name}](#{})", anchor(name)),
        None => format!("`{full_name}`"),
    }
}

/// The anchor that Markdown gives a heading.
fn anchor(name: &str) -> String {
    name.to_lowercase().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => link(message.full_name()),
        Kind::Enum(values) => link(values.full_name()),
        plain => format!("`{plain:?}`").to_lowercase(),
    }
}

fn type_of(field: &FieldDescriptor) -> String {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { unreachable!("a map has entries") };
        let of = |field: FieldDescriptor| kind(&field.kind());
        let (key, value) = (of(entry.map_entry_key_field()), of(entry.map_entry_value_field()));
        return format!("map of {key} to {value}");
    }
    let of = kind(&field.kind());
    match field.containing_oneof() {
        _ if field.is_list() => format!("repeated {of}"),
        Some(oneof) if oneof.is_synthetic() => format!("optional {of}"),
        Some(oneof) => format!("{of}, one of `{}`", oneof.name()),
        None => of,
    }
}

fn add_service(text: &mut String, service: &ServiceDescriptor, of: &Comments, path: &[i32]) {
    let about = of.at(path, service.name());
    writeln!(text, "\n## {}\n\n{about}", service.name()).expect("text");
    for (nth, method) in service.methods().enumerate() {
        let side = |stream, message: MessageDescriptor| {
            format!("{}{}", if stream { "stream of " } else { "" }, link(message.full_name()))
        };
        let (input, output) = (
            side(method.is_client_streaming(), method.input()),
            side(method.is_server_streaming(), method.output()),
        );
        let about = of.at(&joined(path, [FIELDS, number(nth)]), method.name());
        writeln!(text, "\n### {}\n\n{input} → {output}\n\n{about}", method.name()).expect("text");
    }
}

fn add_message(text: &mut String, message: &MessageDescriptor, of: &Comments, path: &[i32]) {
    if message.is_map_entry() {
        return;
    }
    let full = message.full_name();
    let name = full.strip_prefix("trunkline.v1.").unwrap_or(full);
    writeln!(text, "\n### {name}\n\n{}", of.at(path, name)).expect("text");
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(FieldDescriptor::number);
    if !fields.is_empty() {
        text.push_str("\n| field | type | meaning |\n|---|---|---|\n");
    }
    let raw = message.descriptor_proto();
    for field in fields {
        let index = raw.field.iter().position(|raw| raw.number() == field.number().cast_signed());
        let at = joined(path, [FIELDS, number(index.expect("a field"))]);
        let about = of.cell(&at, field.full_name());
        let (name, number, type_of) = (field.name(), field.number(), type_of(&field));
        writeln!(text, "| `{name}` = {number} | {type_of} | {about} |").expect("text");
    }
    for (nth, nested) in raw.nested_type.iter().enumerate() {
        let child = message.child_messages().find(|child| child.name() == nested.name());
        let at = joined(path, [NESTED_MESSAGES, number(nth)]);
        add_message(text, &child.expect("a message"), of, &at);
    }
    for (nth, nested) in raw.enum_type.iter().enumerate() {
        let child = message.child_enums().find(|child| child.name() == nested.name());
        add_enum(text, &child.expect("an enum"), of, &joined(path, [NESTED_ENUMS, number(nth)]));
    }
}

fn add_enum(text: &mut String, values: &EnumDescriptor, of: &Comments, path: &[i32]) {
    let full = values.full_name();
    let name = full.strip_prefix("trunkline.v1.").unwrap_or(full);
    writeln!(text, "\n### {name}\n\n{}", of.at(path, name)).expect("text");
    text.push_str("\n| value | meaning |\n|---|---|\n");
    for (nth, value) in values.enum_descriptor_proto().value.iter().enumerate() {
        let about = of.cell(&joined(path, [VALUES, number(nth)]), value.name());
        writeln!(text, "| `{}` = {} | {about} |", value.name(), value.number()).expect("text");
    }
}

fn document() -> String {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("the build encoded the descriptors");
    let mut text = HEAD.to_owned();
    let of_api = |file: &FileDescriptor| file.package_name() == "trunkline.v1";
    let mut files: Vec<_> = pool.files().filter(of_api).collect();
    // The service comes first.
    files.sort_by_key(|file| file.services().len() == 0);
    for file in files {
        let comments = Comments::of(&file);
        for (nth, service) in file.services().enumerate() {
            add_service(&mut text, &service, &comments, &[SERVICES, number(nth)]);
        }
        let path = file.name();
        let title = path.rsplit_once('/').map_or(path, |(_, name)| name);
        writeln!(text, "\n## Messages of {title}").expect("text");
        let raw = file.file_descriptor_proto();
        for (nth, message) in raw.message_type.iter().enumerate() {
            let name = format!("trunkline.v1.{}", message.name());
            let message = pool.get_message_by_name(&name).expect("a message");
            add_message(&mut text, &message, &comments, &[MESSAGES, number(nth)]);
        }
        for (nth, values) in raw.enum_type.iter().enumerate() {
            let name = format!("trunkline.v1.{}", values.name());
            let values = pool.get_enum_by_name(&name).expect("an enum");
            add_enum(&mut text, &values, &comments, &[ENUMS, number(nth)]);
        }
    }
    text
}

#[test]
fn the_document_is_the_api_with_its_comments() {
    let made = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(DOCUMENT, &made).expect("written");
    }
    let written = fs::read_to_string(DOCUMENT).unwrap_or_default();
    for (line, expected) in written.lines().zip(made.lines()) {
        assert_eq!(line, expected, "write docs/api.md with UPDATE_DOCS=1");
    }
    assert_eq!(written.len(), made.len(), "write docs/api.md with UPDATE_DOCS=1");
    // Every link leads to a heading.
    let headings: Vec<_> = made.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    for (at, _) in made.match_indices("](#") {
        let target = made[at + 3..].split(')').next().expect("an end");
        assert!(headings.iter().any(|heading| anchor(heading) == target), "{target}");
    }
    assert!(headings.len() > 60, "{}", headings.len());
}

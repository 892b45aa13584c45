//! The rooms of `src/`: imports run one way between them, and never in a circle within one.
//!
//! A room is a folder or a file directly under `src/`. What it may import stands in [`ROOMS`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each room and the rooms that it imports, the lowest first: every import points upwards in this
/// table. A room that is not imported any more must be taken out.
const ROOMS: &[(&str, &str)] = &[
    ("proto", ""),
    ("json", "proto"),
    ("log", ""),
    ("process", ""),
    ("throttle", ""),
    ("trace_context", ""),
    ("leave", ""),
    ("config", ""),
    ("admin_port", "throttle process"),
    // They stand on `trunkline-client` and `trunkline-proto` alone, like any node.
    ("agent", "throttle admin_port"),
    ("link", "throttle admin_port"),
    ("bus", "proto throttle trace_context config"),
    ("hub", "proto throttle trace_context config bus"),
    ("errors", "config bus"),
    ("access", "proto config hub errors leave"),
    ("port", "config errors access"),
    ("lifecycle", "proto bus hub errors leave"),
    ("presence", "proto leave config bus hub lifecycle"),
    (
        "observe",
        "proto log process throttle trace_context leave config admin_port bus hub errors access \
         port lifecycle presence",
    ),
    (
        "rpc",
        "proto trace_context leave config bus hub errors access port lifecycle presence observe",
    ),
    ("web", "proto json errors access port"),
    (
        "gateway",
        "process proto config bus hub errors access port lifecycle presence observe rpc web",
    ),
    ("cli", "log json config admin_port agent link bus hub gateway"),
];

/// A module: its path below the crate, such as `["hub", "cursor"]`.
type Module = Vec<String>;

/// The modules of `src/` and, for each, the paths that its code names. Tests are left out, and so
/// is code that is compiled for tests and fuzzing alone.
fn modules() -> BTreeMap<Module, Vec<Module>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    find_files(&source, &mut files);
    let test_only: Vec<PathBuf> = files.iter().flat_map(|file| test_modules(file)).collect();
    let is_test = |file: &Path| test_only.iter().any(|module| file.starts_with(module));
    let code = files.iter().filter(|file| !is_test(&file.with_extension("")));
    code.filter(|file| !file.ends_with("src/lib.rs") && !file.ends_with("src/main.rs"))
        .map(|file| {
            let module = module_of(file.strip_prefix(&source).expect("a file of src/"));
            let paths = paths_in(&read(file), &module);
            (module, paths)
        })
        .collect()
}

fn find_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("a source file")
}

/// `hub/cursor/mod.rs` and `hub/cursor.rs` are `["hub", "cursor"]`.
fn module_of(file: &Path) -> Module {
    let file = if file.ends_with("mod.rs") { file.parent().expect("a folder") } else { file };
    file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// The modules that a file declares for tests or fuzzing alone, as paths without an extension.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let name = file.file_stem().expect("a name");
    let folder = file.parent().expect("a folder");
    let own = ["mod", "lib", "main"].iter().any(|own| name == *own);
    let children = if own { folder.to_owned() } else { folder.join(name) };
    let text = read(file);
    let mut modules = Vec::new();
    let mut for_tests = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[cfg(") {
            for_tests = line.contains("test") || line.contains("fuzzing");
        } else if !line.starts_with('#') {
            let declared = line.strip_suffix(';').and_then(|line| line.split_once("mod "));
            modules.extend(declared.filter(|_| for_tests).map(|(_, name)| children.join(name)));
            for_tests = false;
        }
    }
    modules
}

/// The paths below `crate`, `self` and `super` in a module's code, made absolute. Its own tests are
/// at its end.
fn paths_in(text: &str, module: &[String]) -> Vec<Module> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(
        String::new(),
        |mut code, line| {
            code.push_str(line);
            code.push('\n');
            code
        },
    );
    let mut paths = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    // `trunkline` is the library, as the command line names it.
    for root in ["crate", "trunkline", "self", "super"] {
        for (at, _) in code.match_indices(&format!("{root}::")) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| is_name(c) || c == ':') {
                continue;
            }
            let base = match root {
                "self" => module.to_vec(),
                "super" => module[..module.len() - 1].to_vec(),
                _ => vec![],
            };
            use_tree(&code[at + root.len() + 2..], base, &mut paths);
        }
    }
    paths
}

/// Collects the paths of a tree such as `a::{b, c::d}`; returns what follows it.
fn use_tree<'a>(mut text: &'a str, mut base: Module, paths: &mut Vec<Module>) -> &'a str {
    loop {
        text = text.trim_start();
        if let Some(group) = text.strip_prefix('{') {
            text = group;
            loop {
                text = text.trim_start().trim_start_matches(',').trim_start();
                if let Some(rest) = text.strip_prefix('}') {
                    return rest;
                }
                let rest = use_tree(text, base.clone(), paths);
                if rest.len() == text.len() {
                    return rest;
                }
                text = rest;
            }
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match &text[..end] {
            "super" => {
                base.pop();
            }
            "self" | "" => {}
            name => base.push(name.to_owned()),
        }
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => break,
        }
    }
    paths.push(base);
    // `a as b`
    match text.trim_start().strip_prefix("as ") {
        Some(rest) => rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        None => text,
    }
}

#[test]
fn rooms_import_only_the_rooms_below_them() {
    let names: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    for (at, (room, imports)) in ROOMS.iter().enumerate() {
        for import in imports.split_whitespace() {
            assert!(names[..at].contains(&import), "{room} stands above {import} in the table");
        }
    }
    let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let modules = modules();
    for (module, paths) in &modules {
        let room = module[0].as_str();
        let Some((_, may_import)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            panic!("the room {room} is not in the table");
        };
        for other in paths.iter().filter_map(|path| path.first()).map(String::as_str) {
            if other == room || !names.contains(&other) {
                continue;
            }
            let of = module.join("::");
            let allowed = may_import.split_whitespace().any(|import| import == other);
            assert!(allowed, "{of} imports {other}: see ROOMS");
            used.entry(room).or_default().insert(other);
        }
    }
    for (room, imports) in ROOMS {
        let used = used.get(room).cloned().unwrap_or_default();
        let unused: Vec<_> =
            imports.split_whitespace().filter(|import| !used.contains(import)).collect();
        assert!(unused.is_empty(), "{room} imports {unused:?} no more: take it out of ROOMS");
    }
}

#[test]
fn modules_of_a_room_do_not_import_one_another_in_circles() {
    let modules = modules();
    // A module and those inside it are one thing: an edge leads between neighbours in one folder.
    let mut edges: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for (module, paths) in &modules {
        for path in paths {
            let target = (1..=path.len()).rev().find_map(|n| modules.get_key_value(&path[..n]));
            let Some((target, _)) = target else { continue };
            let shared = module.iter().zip(target).take_while(|(a, b)| a == b).count();
            if shared > 0 && shared < module.len().min(target.len()) {
                edges.entry(&module[..=shared]).or_default().insert(&target[..=shared]);
            }
        }
    }
    for module in edges.keys() {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&[String]> = edges.get(module).into_iter().flatten().copied().collect();
        while let Some(other) = next.pop() {
            if reached.insert(other) {
                next.extend(edges.get(other).into_iter().flatten());
            }
        }
        let circle: Vec<String> = reached.iter().map(|module| module.join("::")).collect();
        let own = module.join("::");
        assert!(!reached.contains(module), "{own} imports itself by way of {circle:?}");
    }
}

#[test]
fn paths_are_found_in_trees_of_imports() {
    let module = ["hub", "cursor"].map(String::from);
    let text = "
        use super::{log, Hub as Other, self};
        use crate::{
            bus::{Frame, redis::Bus},
            hub::event::{self, EventView},
        };
        // crate::rpc
        fn f() { crate::config::read() }
        use trunkline::gateway;
        #[cfg(test)]
        mod tests { use crate::gateway; }";
    let found: BTreeSet<String> =
        paths_in(text, &module).iter().map(|path| path.join("::")).collect();
    let expected = [
        "bus::Frame",
        "bus::redis::Bus",
        "config::read",
        "gateway",
        "hub",
        "hub::Hub",
        "hub::event",
        "hub::event::EventView",
        "hub::log",
    ];
    assert_eq!(found, expected.map(String::from).into());
}

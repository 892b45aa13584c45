//! The package: its own tests, and what a wheel contains.

use std::{fs, path::Path, process::Command};

use crate::support::{LIMIT, folder, process::Program, tools};

/// The folder of the package in this checkout.
fn sources() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python").display().to_string()
}

#[tokio::test]
async fn the_python_package_passes_its_own_tests() {
    let args = ["-m", "unittest", "discover", "--start-directory"];
    let tests = format!("{}/tests", sources());
    let program = tools::python_client(args.into_iter().chain([tests.as_str()]));
    let output = program.run(LIMIT).await;
    assert!(output.status.success(), "{}", output.stderr);
    // Without any test, it succeeds too.
    assert!(output.stderr.contains("\nOK") && !output.stderr.contains("Ran 0 "), "{output:?}");
}

/// A wheel has the generated code and its types: neither this repository nor the generator is
/// needed where it is installed.
#[tokio::test]
async fn a_python_wheel_contains_generated_code_and_works_by_itself() {
    // Building leaves files beside the sources.
    let folder = folder::new();
    let copy = folder.path().join("clients");
    fs::create_dir(&copy).expect("a folder");
    for (from, to) in [(sources(), &copy), (sources() + "/../../proto", &folder.path().into())] {
        let status = Command::new("cp").args(["-r", &from]).arg(to).status().expect("cp");
        assert!(status.success(), "{from}");
    }
    let build = "import os, sys, zipfile\n\
                 from setuptools import build_meta\n\
                 package, target = sys.argv[1:]\n\
                 os.chdir(package)\n\
                 wheel = build_meta.build_wheel(target)\n\
                 zipfile.ZipFile(os.path.join(target, wheel)).extractall(target)\n";
    let package = copy.join("python").display().to_string();
    let installed = folder.path().join("installed");
    fs::create_dir(&installed).expect("a folder");
    let target = installed.display().to_string();
    Program::new(tools::python(), ["-c", build, &package, &target]).run(LIMIT).await.success();

    let package = installed.join("trunkline");
    for file in ["py.typed", "v1/event_pb2.py", "v1/event_pb2.pyi", "v1/__init__.py"] {
        assert!(package.join(file).is_file(), "{file}");
    }
    let metadata = fs::read_dir(&installed).expect("a folder").filter_map(Result::ok);
    let metadata = metadata.map(|entry| entry.path().join("METADATA")).find(|path| path.is_file());
    let metadata = fs::read_to_string(metadata.expect("METADATA")).expect("text");
    let version = format!("\nVersion: {}\n", env!("CARGO_PKG_VERSION"));
    assert!(metadata.contains(&version), "all packages have one version: {metadata}");
    assert!(!metadata.contains("grpcio-tools"), "a node needs no generator: {metadata}");
    let import = "import sys\n\
                  sys.modules['grpc_tools'] = None\n\
                  import trunkline, trunkline.blocking, trunkline.conformance\n\
                  from trunkline.v1 import Event, QueueRefresh\n\
                  print(trunkline.__file__, Event(queue_refresh=QueueRefresh()))\n";
    let program = Program::new(tools::python(), ["-c", import]).env("PYTHONPATH", &target);
    let output = program.run(LIMIT).await.success();
    assert!(output.starts_with(&target) && output.contains("queue_refresh"), "{output}");
}

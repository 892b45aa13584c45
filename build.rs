//! Generates the messages of the bus, and the service of load reports.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // protox is a protobuf compiler in Rust: no protoc is needed.
    let files = ["trunkline/bus/v1/frame.proto", "trunkline/bus/v1/members.proto"];
    let mut bus = protox::compile(files, ["proto"])?;
    // Those of the wire API are in trunkline-proto.
    bus.file.retain(|file| file.package() == "trunkline.bus.v1");
    tonic_prost_build::configure()
        .build_server(false)
        .build_client(false)
        .extern_path(".trunkline.v1", "::trunkline_proto::v1")
        .bytes(".trunkline.bus.v1.NodeRecord.node")
        .bytes(".trunkline.bus.v1.WatchStats.agent")
        .compile_fds(bus)?;

    let mut orca = protox::Compiler::new(["proto"])?;
    orca.include_imports(true).open_file("xds/service/orca/v3/orca.proto")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("orca.descriptor.bin"), orca.encode_file_descriptor_set())?;
    tonic_prost_build::configure().build_client(false).compile_fds(orca.file_descriptor_set())?;
    Ok(())
}

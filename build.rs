//! Generates the messages of the bus.

use std::error::Error;

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
    Ok(())
}

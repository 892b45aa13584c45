//! Generates the messages of the bus, and the server stub of the wire API, whose events stay bytes.

use std::error::Error;

use tonic_prost_build::manual;

const MESSAGES: &str = "crate::rpc::wire";
const CODEC: &str = "crate::rpc::wire::WireCodec";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // protox is a protobuf compiler in Rust: no protoc is needed.
    let bus = ["trunkline/bus/v1/frame.proto", "trunkline/bus/v1/members.proto"];
    let bus = protox::compile(bus, ["proto"])?;
    let bus = prost_build_only_package(bus, "trunkline.bus.v1");
    tonic_prost_build::configure()
        .build_server(false)
        .build_client(false)
        .extern_path(".trunkline.v1", "::trunkline_proto::v1")
        .bytes(".trunkline.bus.v1.NodeRecord.node")
        .compile_fds(bus)?;

    // The server takes events as bytes, and gives them as bytes beside this (`rpc::body`): it never decodes one to encode it
    // again.
    let method = |name: &str, route: &str, input: String, output: String| {
        manual::Method::builder()
            .name(name)
            .route_name(route)
            .input_type(input)
            .output_type(output)
            .codec_path(CODEC)
    };
    let v1 = |name: &str| format!("crate::proto::v1::{name}");
    let wire = |name: &str| format!("{MESSAGES}::{name}");
    let service = manual::Service::builder()
        .name("CoordinationService")
        .package("trunkline.v1")
        .method(method("publish", "Publish", wire("PublishRequest"), v1("PublishResponse")).build())
        .method(
            method("subscribe", "Subscribe", v1("SubscribeRequest"), v1("SubscribeResponse"))
                .server_streaming()
                .build(),
        )
        .method(
            method("list_nodes", "ListNodes", v1("ListNodesRequest"), v1("ListNodesResponse"))
                .build(),
        )
        .method(
            method("get_status", "GetStatus", v1("GetStatusRequest"), v1("GetStatusResponse"))
                .build(),
        )
        .build();
    manual::Builder::new().build_client(false).compile(&[service]);
    Ok(())
}

/// The descriptors with only the files of `package` left to generate.
fn prost_build_only_package(
    mut set: prost_types::FileDescriptorSet,
    package: &str,
) -> prost_types::FileDescriptorSet {
    set.file.retain(|file| file.package() == package);
    set
}

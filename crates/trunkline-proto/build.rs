//! Compiles `proto/trunkline/v1`: the messages always, the stubs by feature.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();

    // protox is a protobuf compiler in Rust: no protoc is needed.
    let api = protox::compile(["trunkline/v1/coordination_service.proto"], ["proto"])?;
    fs::write(out.join("trunkline.v1.descriptor.bin"), api.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(feature("CLIENT"))
        .build_server(feature("SERVER"))
        .compile_well_known_types(false)
        .extern_path(".google.rpc.Status", "crate::rpc::Status")
        .compile_fds(api)?;
    Ok(())
}

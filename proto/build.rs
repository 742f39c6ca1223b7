//! Compiles the protobuf schema with protox, so that nobody needs protoc; writes the descriptor set for reflection.

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

#[allow(clippy::print_stdout)]
fn main() -> Result<(), Box<dyn Error>> {
    let schema = ["schema/payhub/v1/payhub.proto", "schema/payhub/v1/watchtower.proto"];
    for file in schema {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(schema, ["schema"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // `compile_fds` does not write the set that server reflection serves.
    std::fs::write(out.join("payhub.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

//! Certificates made by openssl, in a folder.

use std::path::Path;

use super::{process::Program, tools, wait::LIMIT};

/// Options of `openssl req` for a new key.
pub const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// Makes `<name>.pem` and `<name>.key` of an authority.
pub async fn authority(folder: &Path, name: &str) {
    let args =
        format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 60 -subj /CN={name}");
    openssl(folder, &args).await;
}

/// Makes `<file>.pem` and `<file>.key` for a name such as `DNS:localhost`. `dates` are options of
/// `openssl x509`.
pub async fn certificate(folder: &Path, file: &str, authority: &str, name: &str, dates: &str) {
    std::fs::write(folder.join(format!("{file}.ext")), format!("subjectAltName={name}\n"))
        .expect("a file");
    let request = format!("req {KEY} -keyout {file}.key -out {file}.csr -subj /CN={file}");
    openssl(folder, &request).await;
    let sign = format!(
        "x509 -req -in {file}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial \
         -out {file}.pem {dates} -extfile {file}.ext"
    );
    openssl(folder, &sign).await;
}

/// Runs openssl in the folder; a shell expands the arguments.
pub async fn openssl(folder: &Path, args: &str) {
    let script = format!("cd \"$0\" && exec \"$1\" {args}");
    let (folder, openssl) = (folder.display().to_string(), tools::openssl().display().to_string());
    Program::new("sh", ["-c", &script, &folder, &openssl]).run(LIMIT).await.success();
}

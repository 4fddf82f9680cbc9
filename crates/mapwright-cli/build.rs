//! Builds the shim that `mapwright run` preloads, so that the command carries it.
//!
//! A second cargo, because no stable one hands a shared object to the crate that depends on it, and as an ordinary dependency its `mmap` would
//! be the command's own. It has a folder of its own beside the profiles' in the target folder, whose lock is not that of the cargo that waits for
//! this: every profile, and clippy, carry the same shim, which is built once. All that it compiles is in the workspace's lock file, and was downloaded
//! for the command; where that was made by another lock file (`cargo install` without `--locked`) it asks the network.
//!
//! Where there is no shim to be had (another C library, a package without the workspace) an empty file stands for it, and `mapwright run` says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What the shim is made of, beside the folder of this package.
const SOURCES: [&str; 8] = [
    "mapwright-shim/src",
    "mapwright-shim/Cargo.toml",
    "mapwright/src",
    "mapwright/Cargo.toml",
    "mapwright-sys/src",
    "mapwright-sys/Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
];
/// What was meant for the crates outside: lints by clippy-driver, sanitizers, targets, the folders of another cargo.
const NOT_INHERITED: [&str; 8] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
];

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let crates = Path::new(&variable("CARGO_MANIFEST_DIR")).join("..");
    println!("cargo::rerun-if-changed=build.rs");
    let is_there = crates.join(SOURCES[0]).is_dir() && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    let to = out.join("libmapwright_shim.so");
    if !is_there {
        fs::write(&to, "").unwrap_or_else(|error| panic!("{}: {error}", to.display()));
        return;
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", crates.join(source).display());
    }
    let shim = build(&crates, &target_folder(&out).join("mapwright-shim"));
    fs::copy(&shim, &to).unwrap_or_else(|error| panic!("{}: {error}", shim.display()));
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// The folder that all profiles have in common, or else that of this package's own.
fn target_folder(out: &Path) -> PathBuf {
    let shared = out.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").is_file());
    shared.unwrap_or(out).to_owned()
}

/// Builds the shim in a folder; where it is then.
fn build(crates: &Path, folder: &Path) -> PathBuf {
    let target = variable("TARGET");
    let cargo = |offline: bool| {
        let mut cargo = Command::new(variable("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "shim",
            "--target",
            &target,
            "--manifest-path",
        ]);
        cargo.arg(crates.join("mapwright-shim/Cargo.toml")).arg("--target-dir").arg(folder);
        if offline {
            cargo.arg("--offline");
        }
        for name in NOT_INHERITED {
            cargo.env_remove(name);
        }
        let status = cargo.status().unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
        assert!(offline || status.success(), "{cargo:?}: {status}");
        status.success()
    };
    if !cargo(true) {
        cargo(false);
    }
    folder.join(target).join("shim/libmapwright_shim.so")
}

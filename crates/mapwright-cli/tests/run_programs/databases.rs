//! Databases that map their files: SQLite, LMDB, and etcd, which can't be served.

use std::path::Path;
use std::process::Command;

use crate::common::folder;
use crate::trial::{MORE_THAN_ONCE, PAST_ITS_END, SMALL, Trial, beside_the_build, clean, copy, source};

fn python() -> Option<String> {
    beside_the_build("python/bin/python")
}

/// Several processes write transactions and look, one is killed; at the end the file becomes smaller.
#[test]
fn sqlite_writes_with_several_processes() {
    let Some(python) = python() else { return };
    let script = source("sqlite_work.py");
    for journal in ["wal", "delete"] {
        // Who came first is seen in the bytes.
        let trial = Trial::new(&[&python, &script, journal]).leaving(|_| false).tight();
        for report in trial.run().into_iter().flatten() {
            report.is_the_kernels("/data.db", MORE_THAN_ONCE);
            if journal == "wal" {
                report.is_the_kernels("/data.db-shm", SMALL);
            }
        }
    }
}

#[test]
fn sqlite_reads_with_several_processes() {
    let Some(python) = python() else { return };
    let script = source("sqlite_work.py");
    let made = folder();
    let output = clean(Command::new(&python).args([&script, "delete"]).current_dir(made.path())).output();
    assert!(output.unwrap().status.success());
    let trial = Trial::new(&[&python, &script, "read"]).on(|dir| copy(made.path(), dir));
    let Some(reports) = trial.run() else { return };
    for report in reports {
        assert!(report.served("/data.db") >= 7, "{:#}", report.0);
        report.did_work();
    }
}

#[test]
fn lmdb_works_with_several_processes() {
    let Some(python) = python() else { return };
    let script = source("lmdb_work.py");
    for (mode, why) in [("plain", PAST_ITS_END), ("writemap", MORE_THAN_ONCE)] {
        let made = |dir: &Path| std::fs::create_dir(dir.join("data")).unwrap();
        let trial = Trial::new(&[&python, &script, mode]).on(made).leaving(|_| false).tight();
        for report in trial.run().into_iter().flatten() {
            report.is_the_kernels("/data/data.mdb", why);
            report.is_the_kernels("/data/lock.mdb", SMALL);
        }
    }
}

/// It maps its database by system calls of its own, which nobody sees: it must not notice.
#[test]
fn etcd_is_not_served_and_does_not_notice() {
    let Some(python) = python() else { return };
    let Some(etcd) = beside_the_build("etcd/usr/bin/etcd") else { return };
    let script = source("etcd_work.py");
    let trial = Trial::new(&[&python, &script, &etcd]).leaving(|_| false).tight();
    for report in trial.run().into_iter().flatten() {
        assert!(report.programs("etcd") >= 2, "{:#}", report.0);
        assert!(!report.0["files"].to_string().contains("/data/"), "{:#}", report.0);
    }
}

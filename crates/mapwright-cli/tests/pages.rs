//! Completions and man pages: they are generated, name every command, and the programs that read them accept them.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{expect, folder, other_tool, text};

const COMMANDS: [&str; 11] = [
    "compare",
    "doctor",
    "cache",
    "map",
    "explain",
    "serve",
    "run",
    "tour",
    "recover",
    "dump",
    "completions",
];

#[test]
fn completions_name_every_command_and_nothing_hidden() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (script, _) = expect(Path::new("."), &["completions", shell], 0);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        for part in ["one-file-system", "dump", "extended"] {
            assert!(script.contains(part), "{shell}: --{part}");
        }
        for hidden in ["compare-worker", "tour-worker", "man-pages"] {
            assert!(!script.contains(hidden), "{shell}: {hidden}");
        }
    }
    expect(Path::new("."), &["completions", "nonsense"], 2);
    expect(Path::new("."), &["completions"], 2);
}

#[test]
fn shells_take_them() {
    let dir = folder();
    for (shell, arguments) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let (script, _) = expect(dir.path(), &["completions", shell], 0);
        fs::write(dir.path().join(shell), script).unwrap();
        let arguments: Vec<&str> = arguments.iter().copied().chain([shell]).collect();
        other_tool(dir.path(), shell, &arguments);
    }
    // A real completion, by the function that the script defines.
    let ask = "source ./bash; COMP_WORDS=(mapwright cache --one); COMP_CWORD=2; _mapwright mapwright --one cache; echo ${COMPREPLY[@]}";
    if let Some(said) = other_tool(dir.path(), "bash", &["-c", ask]) {
        assert_eq!(said.trim(), "--one-file-system");
    }
}

#[test]
fn man_pages_are_written_for_every_command() {
    let dir = folder();
    expect(dir.path(), &["man-pages", "man/1"], 0);
    let pages = fs::read_dir(dir.path().join("man/1")).unwrap().count();
    assert_eq!(pages, COMMANDS.len() + 1);
    for name in
        COMMANDS.iter().map(|command| format!("mapwright-{command}.1")).chain(["mapwright.1".to_owned()])
    {
        let path = dir.path().join("man/1").join(&name);
        let page = fs::read_to_string(&path).unwrap();
        assert!(page.contains(".TH mapwright") && page.contains(".SH NAME"), "{name}");
        assert!(!page.contains("worker"), "{name}");
        let Ok(output) =
            Command::new("groff").args(["-man", "-Tutf8", "-ww", "-K", "utf8"]).arg(&path).output()
        else {
            eprintln!("######## SKIPPED: groff is not installed ########");
            continue;
        };
        let (shown, warnings) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && !warnings.contains("error"), "{name}: {warnings}");
        if name == "mapwright-cache.1" {
            let line = shown.lines().find(|line| line.contains("--restore warm.txt")).unwrap_or_default();
            assert!(line.trim_start().starts_with("mapwright cache"), "lines were joined:\n{shown}");
        }
    }
    fs::write(dir.path().join("file"), b"").unwrap();
    let (_, why) = expect(dir.path(), &["man-pages", "file/x"], 1);
    assert!(why.contains("cannot make the folder"), "{why}");
}

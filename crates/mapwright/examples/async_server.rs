//! Serves ranges of a file over TCP, on one thread that never waits for the disk.
//!
//! Shows the asynchronous form of explicit access: a task awaits the pages it needs (`get_async`) while the others go on;
//! there is no fault that could stall the thread. The runtime here is smol; any other does as well, because the futures
//! bring no runtime of their own.
//!
//! The protocol: a line `GET offset len` is answered by a line `OK len` and that many bytes, or by a line `ERR message`.
//!
//! ```text
//! cargo run --release -p mapwright --example async_server -- FILE [PORT]     # try: printf 'GET 0 16\n' | nc 127.0.0.1 PORT
//! cargo run --release -p mapwright --example async_server -- --self-test
//! ```

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mapwright::{Map, MapOptions, Pager, Strategy};
use smol::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use smol::net::{TcpListener, TcpStream};
use smol::{LocalExecutor, Timer, future};

const USAGE: &str = "usage: async_server FILE [PORT] | --self-test";
/// Memory for the pager, in bytes.
const BUDGET: u64 = 64 << 20;
/// Most bytes that one request may ask for: they are pinned while they are sent, and many clients share the budget.
const MAX_LEN: u64 = 64 << 10;
/// Most bytes in a request line.
const MAX_LINE: u64 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        ["--self-test"] => self_test(),
        [file, ref port @ ..] if !file.starts_with('-') && port.len() <= 1 => {
            let Ok(port) = port.first().map_or(Ok(0), |port| port.parse()) else { return misused() };
            serve_file(file, port)
        }
        _ => return misused(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("async_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn misused() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn open(path: impl AsRef<Path>, budget: u64) -> Result<Arc<Map>, mapwright::Error> {
    let pager = Pager::builder().budget(budget).build()?;
    // Not Auto: the kernel's mmap has no asynchronous form, and its faults would stall every client.
    Ok(Arc::new(MapOptions::new().pager(&pager).strategy(Strategy::Pager).open(path)?))
}

fn serve_file(path: &str, port: u16) -> Result<(), Box<dyn Error>> {
    let map = open(path, BUDGET)?;
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("{path}: {} bytes on {}", map.len(), listener.local_addr()?);
        serve(&executor, listener, map).await
    }))
}

/// Accepts clients until accepting fails; a task for each.
async fn serve<'a>(
    executor: &LocalExecutor<'a>,
    listener: TcpListener,
    map: Arc<Map>,
) -> Result<(), Box<dyn Error>> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let map = Arc::clone(&map);
        let client = async move {
            if let Err(error) = serve_client(stream, &map).await {
                eprintln!("async_server: {peer}: {error}");
            }
        };
        executor.spawn(client).detach();
    }
}

async fn serve_client(stream: TcpStream, map: &Map) -> io::Result<()> {
    let mut requests = BufReader::new(stream.clone());
    let mut answers = stream;
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut requests).take(MAX_LINE).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if !line.ends_with('\n') {
            answers.write_all(b"ERR the line is too long or has no end\n").await?;
            return Ok(());
        }
        match parse(&line) {
            Err(message) => answers.write_all(format!("ERR {message}\n").as_bytes()).await?,
            Ok((offset, len)) => match map.get_async(offset..offset.saturating_add(len)).await {
                Err(error) => answers.write_all(format!("ERR {error}\n").as_bytes()).await?,
                Ok(bytes) => {
                    answers.write_all(format!("OK {len}\n").as_bytes()).await?;
                    // Pinned: the socket's system call meets no absent page, in whatever mode faults are served.
                    answers.write_all(&bytes).await?;
                }
            },
        }
    }
}

fn parse(line: &str) -> Result<(u64, u64), String> {
    let mut words = line.split_whitespace();
    let (Some("GET"), Some(offset), Some(len), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("expected: GET offset len".to_owned());
    };
    let number = |word: &str| word.parse::<u64>().map_err(|_| format!("{word} is not a number"));
    let (offset, len) = (number(offset)?, number(len)?);
    if len > MAX_LEN { Err(format!("at most {MAX_LEN} bytes at a time")) } else { Ok((offset, len)) }
}

/// Clients and requests of each in the self-test.
const CLIENTS: u64 = 16;
const REQUESTS: u64 = 50;

/// Serves a file of its own to clients of its own, checks every answer, and ends.
fn self_test() -> Result<(), Box<dyn Error>> {
    let contents: Arc<Vec<u8>> =
        Arc::new((0..8_u64 << 20).map(|at| (at / 4096 * 31 + at * 7) as u8).collect());
    let sample = tempfile::NamedTempFile::new()?;
    std::fs::write(sample.path(), &*contents)?;
    let map = open(sample.path(), 2 << 20)?; // a quarter of the file: pages come and go
    let executor = LocalExecutor::new();
    let test = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let clients: Vec<_> =
            (0..CLIENTS).map(|seed| executor.spawn(client(address, seed, Arc::clone(&contents)))).collect();
        let all = async {
            for client in clients {
                client.await?;
            }
            Ok(())
        };
        future::or(all, serve(&executor, listener, map)).await
    };
    let too_long = async {
        Timer::after(Duration::from_secs(60)).await;
        Err("the self-test took more than a minute".into())
    };
    smol::block_on(executor.run(future::or(test, too_long)))?;
    println!("self-test: {} answers were right", CLIENTS * REQUESTS);
    Ok(())
}

async fn client(address: SocketAddr, seed: u64, contents: Arc<Vec<u8>>) -> Result<(), Box<dyn Error>> {
    let stream = TcpStream::connect(address).await?;
    let mut answers = BufReader::new(stream.clone());
    let mut requests = stream;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % end
    };
    for _ in 0..REQUESTS {
        let (offset, len) = (random(contents.len() as u64 + 4096), random(20_000));
        requests.write_all(format!("GET {offset} {len}\n").as_bytes()).await?;
        let mut line = String::new();
        answers.read_line(&mut line).await?;
        let range = offset as usize..(offset + len) as usize;
        let Some(expected) = contents.get(range) else {
            if !line.starts_with("ERR ") || !line.contains("past the end") {
                return Err(format!("GET {offset} {len}: {line:?} for a range past the end").into());
            }
            continue;
        };
        if line != format!("OK {len}\n") {
            return Err(format!("GET {offset} {len}: {line:?}").into());
        }
        let mut bytes = vec![0; len as usize];
        answers.read_exact(&mut bytes).await?;
        if bytes != expected {
            return Err(format!("GET {offset} {len}: wrong bytes").into());
        }
    }
    Ok(())
}

// SPDX-License-Identifier: Apache-2.0

//! One thread as gateway, one as backend, each in its own process, and the client in this one.
//!
//! With `nginx` in the path the same load goes through it too, in the same run: only the ratio
//! of two programs measured together means anything. Gateway and nginx are bound to the last
//! CPU that this process may use.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use gateway::http::{
    Carry, Dialed, Downstream, Limits, Pool, Protocol, ResponseHead, Terms, serve,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

const IN_FLIGHT: usize = 64;
const BODY: usize = 1024;

/// Allocations and allocated bytes of this process so far, where they are counted.
pub(crate) type Counts = fn() -> Option<(usize, usize)>;

/// Starts a gateway of another kind in front of a backend, and says where it listens.
pub(crate) type Start = fn(SocketAddr) -> Result<(Box<dyn std::any::Any>, SocketAddr)>;

/// The whole program; the number of requests may be its argument.
///
/// With `start` that is measured in place of the engine alone.
pub(crate) fn main(counts: Counts, start: Option<Start>) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    match words.as_slice() {
        ["backend", protocol] => local.block_on(&runtime, backend(protocol_of(protocol)?)),
        ["gateway", protocol, to] => match start {
            Some(start) => local.block_on(&runtime, async {
                let (_running, address) = start(to.parse()?)?;
                say(address)?;
                std::future::pending().await
            }),
            None => local.block_on(&runtime, gateway(protocol_of(protocol)?, to.parse()?, counts)),
        },
        rest => {
            let protocols: &[&str] = if start.is_some() { &["h1"] } else { &["h1", "h2"] };
            let requests = rest.iter().find_map(|word| word.parse().ok()).unwrap_or(100_000);
            local.block_on(&runtime, compare(requests, counts().is_some(), protocols))
        }
    }
}

fn protocol_of(name: &str) -> Result<Protocol> {
    match name {
        "h1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::Http2),
        other => bail!("protocol {other}"),
    }
}

/// Runs every pair, and nginx if it is there.
async fn compare(requests: usize, counted: bool, protocols: &[&str]) -> Result<()> {
    let mut out = std::io::stdout();
    for protocol in protocols {
        let backend = Role::start(&["backend", protocol])?;
        let gateway = Role::start(&["gateway", protocol, &backend.address.to_string()])?;
        let speaks = protocol_of(protocol)?;
        if counted {
            writeln!(
                out,
                "{protocol}->{protocol} one by one: {}",
                allocations(&gateway, speaks).await?
            )?;
            continue;
        }
        writeln!(
            out,
            "{}",
            cost(&format!("{protocol}->{protocol}"), &gateway, speaks, requests).await?
        )?;
        writeln!(out, "{protocol} {}", idle(&gateway, speaks).await?)?;
        if *protocol == "h1"
            && let Some(nginx) = Nginx::start(backend.address)?
        {
            for _ in 0..2 {
                writeln!(out, "{}", cost("nginx h1->h1", &nginx.0, speaks, requests).await?)?;
                writeln!(out, "{}", cost("h1->h1", &gateway, speaks, requests).await?)?;
            }
        }
    }
    Ok(())
}

/// Allocations per request of one connection; exact.
async fn allocations(gateway: &Role, protocol: Protocol) -> Result<String> {
    const REQUESTS: u32 = 10_000;
    load(gateway.address, protocol, 1, 2000).await?;
    let before = stats(gateway.address, protocol).await?;
    load(gateway.address, protocol, 1, REQUESTS as usize).await?;
    let after = stats(gateway.address, protocol).await?;
    let per = |index: usize| {
        let difference = after.get(index).unwrap_or(&0) - before.get(index).unwrap_or(&0);
        difference as f64 / f64::from(REQUESTS)
    };
    Ok(format!("{:.1} allocations, {:.0} bytes per request", per(0), per(1)))
}

/// Resident memory of connections that had a request each and now wait.
async fn idle(gateway: &Role, protocol: Protocol) -> Result<String> {
    const CONNECTIONS: usize = 1000;
    let before: i64 = gateway.resident()?.parse()?;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(stay(gateway.address, protocol).await?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after: i64 = gateway.resident()?.parse()?;
    let each = (after - before) as f64 / CONNECTIONS as f64;
    Ok(format!("{CONNECTIONS} idle connections: {each:.1} KiB each"))
}

/// A connection that had one request.
async fn stay(to: SocketAddr, protocol: Protocol) -> Result<Box<dyn std::any::Any>> {
    let one = Cell::new(1);
    if protocol == Protocol::Http2 {
        let (client, connection) = h2::client::handshake(connect(to).await?).await?;
        tokio::task::spawn_local(async move {
            let _ended = connection.await;
        });
        load_h2(client.clone(), &one).await?;
        return Ok(Box::new(client));
    }
    let mut io = connect(to).await?;
    load_h1(&mut io, &one).await?;
    Ok(Box::new(io))
}

/// CPU per request of `role` under load.
async fn cost(name: &str, role: &Role, protocol: Protocol, requests: usize) -> Result<String> {
    load(role.address, protocol, IN_FLIGHT, requests / 10).await?;
    let (cpu, began) = (role.cpu()?, Instant::now());
    load(role.address, protocol, IN_FLIGHT, requests).await?;
    let (cpu, took) = (role.cpu()? - cpu, began.elapsed());
    Ok(format!(
        "{name} {IN_FLIGHT} at once: {:.2} us CPU per request, {:.0} requests/s, {} KiB resident",
        cpu.as_secs_f64() * 1e6 / requests as f64,
        requests as f64 / took.as_secs_f64(),
        role.resident()?,
    ))
}

/// This program, or nginx, as a child that ends with us.
struct Role {
    child: Child,
    pid: u32,
    address: SocketAddr,
}

impl Role {
    fn start(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let pid = child.id();
        if arguments.first() == Some(&"gateway") {
            pin(pid)?;
        }
        Ok(Self { child, pid, address: line.trim().parse()? })
    }

    /// Time on a CPU, of all threads.
    fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split(' ').next().context("empty")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }

    fn resident(&self) -> Result<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = text.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.to_owned())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Binds a process to the last CPU that we may use; the others stay for client and backend.
fn pin(pid: u32) -> Result<()> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line =
        text.lines().find(|line| line.starts_with("Cpus_allowed_list")).context("no list")?;
    let last = line.split(['\t', ',', '-']).next_back().context("empty")?;
    let done = Command::new("taskset")
        .args(["-acp", last, &pid.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if done.success() { Ok(()) } else { bail!("taskset") }
}

struct Nginx(Role, #[expect(dead_code, reason = "kept until the end")] tempdir::Folder);

mod tempdir {
    //! A folder that goes with its value.
    pub(crate) struct Folder(pub(crate) std::path::PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _gone = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl Nginx {
    /// None if there is no nginx.
    fn start(backend: SocketAddr) -> Result<Option<Self>> {
        let folder = std::env::temp_dir().join(format!("relay-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let folder = tempdir::Folder(folder);
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let text = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; client_body_temp_path {0}; proxy_temp_path {0};\n\
             fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0}; keepalive_requests 100000000;\n\
             upstream backend {{ server {backend}; keepalive 256; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://backend;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n",
            folder.0.display()
        );
        let file = folder.0.join("nginx.conf");
        std::fs::write(&file, text)?;
        let started = Command::new("nginx").arg("-c").arg(&file).stderr(Stdio::null()).spawn();
        let Ok(child) = started else { return Ok(None) };
        let (pid, address) = (child.id(), SocketAddr::from(([127, 0, 0, 1], port)));
        let role = Role { child, pid, address };
        pin(pid)?;
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            if began.elapsed() > Duration::from_secs(5) {
                return Ok(None);
            }
            std::thread::yield_now();
        }
        Ok(Some(Self(role, folder)))
    }
}

fn say(address: SocketAddr) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{address}")?;
    Ok(out.flush()?)
}

/// Says where it listens, then gives every connection to `each`.
async fn listen<F: Future<Output = ()> + 'static>(each: impl Fn(TcpStream) -> F) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(listener.local_addr()?)?;
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        tokio::task::spawn_local(each(io));
    }
}

/// Answers every request with 1 KiB.
async fn backend(protocol: Protocol) -> Result<()> {
    listen(move |io| async move {
        let _ended = match protocol {
            Protocol::Http2 => backend_h2(io).await,
            Protocol::Http1 | Protocol::Sniff => backend_h1(io).await,
        };
    })
    .await
}

async fn backend_h1(mut io: TcpStream) -> Result<()> {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    let mut buffer = vec![0; 8192];
    let mut held = 0;
    loop {
        let count = io.read(buffer.get_mut(held..).context("long head")?).await?;
        if count == 0 {
            return Ok(());
        }
        held += count;
        if buffer.get(..held).is_some_and(|bytes| bytes.ends_with(b"\r\n\r\n")) {
            held = 0;
            io.write_all(answer.as_bytes()).await?;
        }
    }
}

async fn backend_h2(io: TcpStream) -> Result<()> {
    let body = Bytes::from(vec![b'x'; BODY]);
    let mut connection = h2::server::handshake(io).await?;
    while let Some(next) = connection.accept().await {
        let (_, mut respond) = next?;
        let response = Response::builder()
            .header("content-type", "text/plain")
            .header("content-length", BODY)
            .body(())?;
        respond.send_response(response, false)?.send_data(body.clone(), true)?;
    }
    Ok(())
}

/// The engine, joined to one backend.
async fn gateway(protocol: Protocol, to: SocketAddr, counts: Counts) -> Result<()> {
    let limits = Arc::new(Limits { requests: u32::MAX, ..Limits::default() });
    let pool: Pool<SocketAddr> = Pool::new(Arc::clone(&limits));
    listen(move |io| {
        let (limits, pool) = (Arc::clone(&limits), pool.clone());
        async move {
            let terms = Terms {
                protocol,
                secure: false,
                limits: Arc::clone(&limits),
                drain: CancellationToken::new(),
            };
            let handler = async |down: &mut Downstream| {
                let answered = if down.head().uri.path() == "/stats" {
                    let (count, bytes) = counts().unwrap_or_default();
                    let text = format!("{count} {bytes}");
                    own_answer(down, &text).await
                } else {
                    relay(down, &pool, &limits, protocol, to).await
                };
                if let Err(error) = answered {
                    let _unheard = writeln!(std::io::stderr(), "{error:#}");
                }
            };
            serve(io, terms, handler).await;
        }
    })
    .await
}

async fn own_answer(down: &mut Downstream, text: &str) -> Result<()> {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.insert(HeaderName::from_static("x-stats"), HeaderValue::from_str(text)?)?;
    Ok(down.reply(head, Bytes::new()).await?)
}

async fn relay(
    down: &mut Downstream,
    pool: &Pool<SocketAddr>,
    limits: &Limits,
    protocol: Protocol,
    to: SocketAddr,
) -> Result<()> {
    let dial = async || {
        let io = TcpStream::connect(to).await?;
        io.set_nodelay(true)?;
        Ok::<_, std::io::Error>(Dialed { io: Box::new(io), protocol })
    };
    let mut up = pool.get(&to, protocol, dial).await?;
    let mut carry = Carry::new(limits);
    let head = down.request_head();
    let head = carry.respond(down, &mut up, head).await?;
    carry.deliver(down, up, head).await?;
    Ok(())
}

/// Sends `requests` GETs, `width` at once.
async fn load(to: SocketAddr, protocol: Protocol, width: usize, requests: usize) -> Result<()> {
    let left = Rc::new(Cell::new(requests));
    let mut tasks = Vec::new();
    if protocol == Protocol::Http2 {
        let (client, connection) = h2::client::handshake(connect(to).await?).await?;
        tokio::task::spawn_local(async move {
            let _ended = connection.await;
        });
        for _ in 0..width {
            let (left, client) = (Rc::clone(&left), client.clone());
            tasks.push(tokio::task::spawn_local(async move { load_h2(client, &left).await }));
        }
    } else {
        for _ in 0..width {
            let (left, mut io) = (Rc::clone(&left), connect(to).await?);
            tasks.push(tokio::task::spawn_local(async move { load_h1(&mut io, &left).await }));
        }
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let io = TcpStream::connect(to).await?;
    io.set_nodelay(true)?;
    Ok(io)
}

async fn load_h1(io: &mut TcpStream, left: &Cell<usize>) -> Result<()> {
    const REQUEST: &[u8] = b"GET /some/path?with=query HTTP/1.1\r\nHost: backend.example\r\nUser-Agent: relay\r\nAccept: */*\r\n\r\n";
    let mut buffer = vec![0; 8192];
    while let Some(rest) = left.get().checked_sub(1) {
        left.set(rest);
        io.write_all(REQUEST).await?;
        let mut held = 0;
        loop {
            let count = io.read(buffer.get_mut(held..).context("long answer")?).await?;
            if count == 0 {
                bail!("closed");
            }
            held += count;
            let bytes = buffer.get(..held).unwrap_or_default();
            let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
            if head.is_some_and(|head| held >= head + 4 + BODY) {
                break;
            }
        }
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("{}", String::from_utf8_lossy(&buffer));
        }
    }
    Ok(())
}

async fn load_h2(client: h2::client::SendRequest<Bytes>, left: &Cell<usize>) -> Result<()> {
    while let Some(rest) = left.get().checked_sub(1) {
        left.set(rest);
        let request = Request::get("http://backend.example/some/path?with=query")
            .header("user-agent", "relay")
            .header("accept", "*/*")
            .body(())?;
        let mut ready = client.clone().ready().await?;
        let mut body = ready.send_request(request, true)?.0.await?.into_body();
        let mut held = 0;
        while let Some(piece) = body.data().await {
            let piece = piece?;
            held += piece.len();
            body.flow_control().release_capacity(piece.len())?;
        }
        if held != BODY {
            bail!("{held} bytes");
        }
    }
    Ok(())
}

/// Allocations and bytes of the gateway so far.
async fn stats(to: SocketAddr, protocol: Protocol) -> Result<Vec<u64>> {
    let text = if protocol == Protocol::Http2 {
        let (mut client, connection) = h2::client::handshake(connect(to).await?).await?;
        tokio::task::spawn_local(async move {
            let _ended = connection.await;
        });
        let response =
            client.send_request(Request::get("http://a/stats").body(())?, true)?.0.await?;
        response.headers().get("x-stats").context("no stats")?.to_str()?.to_owned()
    } else {
        let mut io = connect(to).await?;
        io.write_all(b"GET /stats HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await?;
        let mut all = String::new();
        io.read_to_string(&mut all).await?;
        let lower = all.to_ascii_lowercase();
        let (_, rest) = lower.split_once("x-stats: ").context("no stats")?;
        rest.lines().next().context("no line")?.to_owned()
    };
    Ok(text.split(' ').map(str::parse).collect::<Result<_, _>>()?)
}

// SPDX-License-Identifier: Apache-2.0

//! Raw TCP load: request and response on open connections, a connection for each
//! exchange, and bulk.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Report, Tally, Until, all};

/// What the connections do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// Exchanges over connections that stay open (server: `Talk::Exchange`).
    Exchange,
    /// Connect, one exchange, close (server: `Talk::Exchange`).
    Connect,
    /// Writes as fast as it can; counts megabytes (server: `Talk::Swallow`).
    Bulk,
}

/// Runs `connections` of `shape` with messages of `size` bytes until it is over.
pub async fn run(
    address: SocketAddr,
    shape: Shape,
    connections: usize,
    size: usize,
    until: &Until,
) -> Report {
    let clients = 0..connections.max(1);
    all(clients.map(|_| client(address, shape, size, until.clone()))).await
}

async fn client(address: SocketAddr, shape: Shape, size: usize, until: Until) -> Tally {
    let mut tally = Tally::new();
    let done = match shape {
        Shape::Exchange => exchanges(address, size, &until, &mut tally).await,
        Shape::Connect => connects(address, size, &until, &mut tally).await,
        Shape::Bulk => bulk(address, size, &until, &mut tally).await,
    };
    if let Err(cause) = done {
        tally.failed(&cause.kind().to_string());
    }
    tally
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A message with its length in front, and room for the answer.
fn message(size: usize) -> (Vec<u8>, Vec<u8>) {
    let length = u32::try_from(size).unwrap_or(u32::MAX);
    let mut message = length.to_be_bytes().to_vec();
    message.resize(4 + size, b'x');
    (message, vec![0; size])
}

async fn exchanges(
    address: SocketAddr,
    size: usize,
    until: &Until,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let mut stream = connect(address).await?;
    let (message, mut answer) = message(size);
    let bytes = u64::try_from(2 * size).unwrap_or(0);
    while !until.over() {
        let begun = Instant::now();
        stream.write_all(&message).await?;
        stream.read_exact(&mut answer).await?;
        tally.good(begun.elapsed(), bytes, "");
    }
    Ok(())
}

async fn connects(
    address: SocketAddr,
    size: usize,
    until: &Until,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let (message, mut answer) = message(size);
    let bytes = u64::try_from(2 * size).unwrap_or(0);
    while !until.over() {
        let begun = Instant::now();
        let one = async {
            let mut stream = connect(address).await?;
            stream.write_all(&message).await?;
            stream.read_exact(&mut answer).await
        };
        match one.await {
            Ok(_) => tally.good(begun.elapsed(), bytes, ""),
            Err(cause) => tally.failed(&cause.kind().to_string()),
        }
    }
    Ok(())
}

async fn bulk(
    address: SocketAddr,
    size: usize,
    until: &Until,
    tally: &mut Tally,
) -> std::io::Result<()> {
    let mut stream = connect(address).await?;
    let part = vec![b'x'; size];
    let mut crc = crc32fast::Hasher::new();
    let (begun, mut total) = (Instant::now(), 0_u64);
    while !until.over() {
        stream.write_all(&part).await?;
        crc.update(&part);
        total += u64::try_from(size).unwrap_or(0);
    }
    stream.shutdown().await?;
    let mut said = String::new();
    stream.read_to_string(&mut said).await?;
    // The time until the server has read and summed everything, not until the last write.
    if said == format!("{total} {:08x}\n", crc.finalize()) {
        tally.good(begun.elapsed(), total, "");
    } else {
        tally.failed("checksum differs");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::super::serve::{self, Talk};
    use super::*;

    #[tokio::test]
    async fn each_shape_moves_bytes_against_its_server() {
        let cases = [
            (Shape::Exchange, Talk::Exchange),
            (Shape::Connect, Talk::Exchange),
            (Shape::Bulk, Talk::Swallow),
        ];
        for (shape, talk) in cases {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(serve::tcp(listener, talk));
            let until = Until::after(Duration::from_millis(50));
            let report = run(address, shape, 2, 1024, &until).await;
            assert!(report.failures() == 0 && report.bytes > 0, "{shape:?}: {report:?}");
        }
    }
}

// SPDX-License-Identifier: Apache-2.0

//! Binary `waymark-controller`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use controller::app::{self, AppError};
use controller::settings::Settings;
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_env("WAYMARK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    let log = log.with_writer(std::io::stderr);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.init();
    }
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = routing::wire::chain(&error), "cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// What there is one of (watches, engine, writers) runs on this thread: a change passes from one
/// to the next without waking another. Clients are served on threads of their own, so that many
/// that come at once, each with a handshake, keep nothing of that waiting.
fn run(settings: Settings) -> Result<(), AppError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let serving = runtime::Builder::new_multi_thread()
        .worker_threads((cores / 2).max(1))
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(AppError::Threads)?;
    let own = runtime::Builder::new_current_thread().enable_all().build();
    own.map_err(AppError::Threads)?.block_on(Box::pin(serve(settings, &serving)))
}

async fn serve(settings: Settings, serving: &Runtime) -> Result<(), AppError> {
    let app = app::start(settings).await?.served_by(serving.handle().clone())?;
    let address = app.address().ok();
    tracing::info!(address = ?address, version = env!("CARGO_PKG_VERSION"), "serving");
    Box::pin(app.run(told_to_stop())).await
}

/// Ends when the process is told to.
async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

// SPDX-License-Identifier: Apache-2.0

//! Binary `waymark-controller`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use controller::app::{self, AppError};
use controller::settings::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_env("WAYMARK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    match Box::pin(serve(settings)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = routing::wire::chain(&error), "cannot go on");
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings) -> Result<(), AppError> {
    let app = app::start(settings).await?;
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

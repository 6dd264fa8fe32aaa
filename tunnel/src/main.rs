// SPDX-License-Identifier: Apache-2.0

//! Binary of the node proxy: settings, logs, run, exit code.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tunnel::access_log::LogWriter;
use tunnel::admin::Levels;
use tunnel::app::{self, Logs};
use tunnel::settings::Settings;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "tunnel has failed");
            // Without logs, standard error is all there is.
            drop(std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("waymark-tunnel: {error:#}\n"),
            ));
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let logs = logs(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(app::run(settings, logs))
}

fn logs(settings: &Settings) -> anyhow::Result<Logs> {
    let writer = LogWriter::start(std::io::stdout(), settings.log_json)?;
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let (filter, handle) = tracing_subscriber::reload::Layer::new(EnvFilter::new(&filter));
    let lines = writer.clone();
    let format =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || lines.clone());
    let registry = tracing_subscriber::registry().with(filter);
    match settings.log_json {
        true => registry.with(format.json()).try_init()?,
        false => registry.with(format).try_init()?,
    }
    let levels = Levels::new(
        std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()),
        move |directives| {
            let filter = EnvFilter::try_new(directives).map_err(|error| error.to_string())?;
            handle.reload(filter).map_err(|error| error.to_string())
        },
    );
    Ok(Logs { writer, levels })
}

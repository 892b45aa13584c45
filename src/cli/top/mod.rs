//! `trunkline top`: a live view of gateways, and of the nodes of all gateways, in a terminal.

mod draw;
mod poll;
mod screen;
mod view;

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use clap::Args;
use tokio::time::Instant;

use self::{
    poll::{Gateways, Poller},
    screen::Screen,
    view::{Sort, View},
};
use super::{Failure, GatewayArgs, visible_json};

#[derive(Args)]
#[command(after_help = "\
Keys:
  b r n d t     sort the nodes by: behind, rate, node, delivered, time connected;
                the same key again reverses the order
  Tab           the next table: nodes, gateways, shards, links, agents
  up, down, PgUp, PgDn, Home, End
                scroll the table
  left, right   scroll its columns, where it is wider than the terminal
  space         pause and resume
  q             quit

Examples:
  trunkline top
  trunkline top --gateway gateway-2.example.com:7420 --sort rate
  trunkline top --gateway 10.0.0.1,10.0.0.2,10.0.0.3
                                the rates of these together, and of each in the table of gateways
  trunkline top --once          one frame as plain text, as without a terminal
  trunkline top --json          the same as JSON

No colours are used where the variable NO_COLOR is set.")]
pub(super) struct Top {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Seconds between two snapshots
    #[arg(long, default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
    /// Order of the nodes
    #[arg(long, value_enum, default_value_t = Sort::Behind)]
    sort: Sort,
    /// Print one frame as plain text, after two snapshots
    #[arg(long)]
    once: bool,
    /// Print a JSON object, after two snapshots; errors too
    #[arg(long)]
    pub(super) json: bool,
}

impl Top {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let interval = Duration::from_secs_f64(self.interval);
        let view = View::new(self.gateway.address(), self.sort);
        let terminals = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if self.once || self.json || !terminals || dumb {
            return self.print(view, interval).await;
        }
        let mut poller = Poller::start(self.gateway, interval);
        watch(view, &mut poller).await
    }

    /// Prints one frame, with the rates between two snapshots.
    async fn print(self, mut view: View, interval: Duration) -> Result<(), Failure> {
        let mut gateways = Gateways::new(self.gateway);
        for number in 0..2 {
            if number > 0 {
                tokio::time::sleep(interval).await;
            }
            view.take(gateways.snapshot().await?, Instant::now());
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            let json = view.to_json().map_err(Failure::Other)?;
            writeln!(out, "{}", visible_json(&format!("{json:#}")))?;
        } else {
            write!(out, "{}", draw::plain(&view))?;
        }
        match view.why_not_serving() {
            None => Ok(()),
            Some(why) => Err(Failure::Unavailable { address: view.address().into(), why }),
        }
    }
}

/// Shows each snapshot and handles keys, until a key or a signal quits. The terminal is restored
/// when this returns, and when it panics.
async fn watch(mut view: View, poller: &mut Poller) -> Result<(), Failure> {
    let mut screen = Screen::open()?;
    let mut terminated = std::pin::pin!(screen::signal());
    loop {
        screen.draw(&mut view)?;
        tokio::select! {
            polled = poller.next() => match polled {
                Ok(snapshot) => view.take(snapshot, Instant::now()),
                Err(failure) => view.set_failure(failure.to_string()),
            },
            event = screen.event() => match event {
                Some(event) => if view.key(&event) { return Ok(()) },
                None => return Err(Failure::Other("the terminal was closed".into())),
            },
            () = &mut terminated => return Ok(()),
        }
    }
}

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds, 0.1 to 3600".into()),
    }
}

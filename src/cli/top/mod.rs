//! `trunkline top`: how a gateway does, live, in a terminal.

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
    poll::Poller,
    screen::Screen,
    view::{Sort, View},
};
use super::{Failure, Gateway};

/// How wide a frame is that no terminal shows.
const PLAIN_WIDTH: u16 = 120;

#[derive(Args)]
#[command(after_help = "\
Keys:
  b r n d t     sort the nodes: behind, rate, node, delivered, time connected; again: the other way round
  arrows, PgUp, PgDn, Home, End   scroll the nodes
  space         stand still, and go on
  q             quit

Examples:
  trunkline top
  trunkline top --gateway gateway-2.example.com:7420 --sort rate
  trunkline top --once                one frame as plain text, as when the output is no terminal")]
pub(super) struct Top {
    #[command(flatten)]
    gateway: Gateway,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
    /// By what the nodes are sorted
    #[arg(long, value_enum, default_value_t = Sort::Behind)]
    sort: Sort,
    /// Print one frame as plain text, after two looks
    #[arg(long)]
    once: bool,
}

impl Top {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let interval = Duration::from_secs_f64(self.interval);
        let view = View::new(self.gateway.gateway.clone(), self.sort);
        if self.once || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return self.print(view, interval).await;
        }
        let mut poller = Poller::start(self.gateway, interval);
        watch(view, &mut poller).await
    }

    /// One frame, with the rates between two looks.
    async fn print(self, mut view: View, interval: Duration) -> Result<(), Failure> {
        let mut client = self.gateway.connect().await?;
        for look in 0..2 {
            if look > 0 {
                tokio::time::sleep(interval).await;
            }
            view.take(poll::look(&mut client).await?, Instant::now());
        }
        let mut out = std::io::stdout().lock();
        write!(out, "{}", draw::plain(&view, PLAIN_WIDTH))?;
        match view.why_not_serving() {
            None => Ok(()),
            Some(why) => Err(Failure::NoGateway { address: view.address().into(), why }),
        }
    }
}

/// Shows what comes, and does what keys say, until one says to quit or a signal comes. The terminal is as it was before when
/// this returns, and when it panics.
async fn watch(mut view: View, poller: &mut Poller) -> Result<(), Failure> {
    let mut screen = Screen::open()?;
    let mut told_to_end = std::pin::pin!(screen::signal());
    loop {
        screen.draw(&mut view)?;
        tokio::select! {
            looked = poller.next() => match looked {
                Ok(snapshot) => view.take(snapshot, Instant::now()),
                Err(failure) => view.no_answer(failure.to_string()),
            },
            event = screen.event() => match event {
                Some(event) => if view.key(&event) { return Ok(()) },
                None => return Err(Failure::Other("the terminal is gone".into())),
            },
            () = &mut told_to_end => return Ok(()),
        }
    }
}

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number of seconds, 0.1 to 3600".into()),
    }
}

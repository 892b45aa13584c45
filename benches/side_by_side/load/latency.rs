//! Open loop: one publisher at a fixed rate; latency counts from the time at which an event was
//! due.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{Audience, WARM_UP, float};
use crate::{
    contestant::System,
    counts::Sample,
    pace::paced,
    payload::{Content, Payload},
    received::take_latencies,
    recorder::Recorder,
    report::Metrics,
};

/// The quantiles that are kept, for the plot.
const QUANTILES: [f64; 13] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999];

/// Measures the latency at `rate` events per second.
pub async fn latency(system: &System, subscribers: usize, rate: u64, length: Duration) -> Metrics {
    let payload = Arc::new(Payload::new(Content::Mailbox));
    let audience = Audience::gather(system, subscribers, &payload, true).await;
    measure_latency(system, &payload, &audience, rate, length).await
}

/// Measures the latency to an existing audience, or of the answers where there are no subscribers.
pub async fn measure_latency(
    system: &System,
    payload: &Arc<Payload>,
    audience: &Audience,
    rate: u64,
    length: Duration,
) -> Metrics {
    let publisher = system.publisher(0).await;
    let answers = publisher.measures_answers().then(|| Recorder::new(true));
    let subscribers: Vec<_> = match &answers {
        Some(answers) => vec![answers.received().clone()],
        None => audience.received.clone(),
    };
    let received = || subscribers.iter().map(|received| received.events()).sum::<u64>();
    let before_all = received();
    let mut sent = 0;
    let mut metrics = Metrics::new();
    for length in [WARM_UP, length] {
        let count = rate * u64::try_from(length.as_millis()).expect("short") / 1000;
        // Those of the warm-up are not measured.
        drop(take_latencies(&subscribers));
        let before = Sample::begin(system).await;
        let (publisher, payload, handle) = (publisher.clone(), payload.clone(), Handle::current());
        let answers = answers.clone();
        #[allow(clippy::cast_precision_loss)] // a small number
        let pacing =
            paced(rate as f64, count, Arc::new(AtomicBool::new(false)), move |number, due| {
                let (publisher, payload, answers) =
                    (publisher.clone(), payload.clone(), answers.clone());
                handle.spawn(async move {
                    let number = usize::try_from(number).expect("64 bits");
                    publisher.publish(&payload, number, 1, due).await;
                    if let Some(answers) = answers {
                        answers.event(&payload.delivered(number, due));
                    }
                });
            });
        sent += count;
        let joined = tokio::task::spawn_blocking(|| pacing.join()).await;
        joined.expect("joined").expect("the sender does not fail");
        let wanted = before_all + sent * subscribers.len() as u64;
        let all = async {
            while received() < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(super::ARRIVAL_TIMEOUT, all).await;
        let missing = wanted.saturating_sub(received());
        let after = Sample::end(system).await;
        let mut used = Metrics::new();
        after.since(&before, count * subscribers.len() as u64, &mut used);
        // Growth uses the names without the prefix for its closed loop.
        for name in ["server_cpu_percent", "redis_cpu_percent", "clients_cpu_percent"] {
            metrics.insert(format!("latency_{name}"), used[name]);
        }
        metrics.insert("latency_others_cpu_percent".to_owned(), used["others_cpu_percent"]);
        metrics.insert("latency_lost".to_owned(), float(missing));
    }
    let all = take_latencies(&subscribers);
    let microseconds = |quantile| float(all.value_at_quantile(quantile)) / 1e3;
    for quantile in QUANTILES {
        metrics.insert(format!("us_at_{quantile}"), microseconds(quantile));
    }
    for (name, quantile) in [("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)] {
        metrics.insert(name.to_owned(), microseconds(quantile));
    }
    metrics.insert("max_us".to_owned(), float(all.max()) / 1e3);
    metrics
}

//! One publisher at a fixed rate, whatever the answers do; latency counts from when an event was to be sent.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{Audience, WARM_UP, float};
use crate::{
    contestant::System,
    counts::Look,
    heard::{Heard, histogram},
    node::one,
    pace::paced,
    payload::{Content, Payload},
    report::Metrics,
};

/// The places of the distribution that are kept, for the plot.
const QUANTILES: [f64; 13] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999];

/// The latency at `rate` events a second.
pub async fn latency(system: &System, subscribers: usize, rate: u64, length: Duration) -> Metrics {
    let payload = Arc::new(Payload::new(Content::Mailbox));
    let audience = Audience::gather(system, subscribers, &payload, true).await;
    measure_latency(system, &payload, &audience, rate, length).await
}

/// The latency to an audience that there is. Where answers are measured, they are.
pub async fn measure_latency(
    system: &System,
    payload: &Arc<Payload>,
    audience: &Audience,
    rate: u64,
    length: Duration,
) -> Metrics {
    let publisher = system.publisher(0).await;
    let answers = publisher.is_answered_only().then(|| Heard::new(true));
    let listeners: Vec<_> = match &answers {
        Some(answers) => vec![answers.clone()],
        None => audience.heard.clone(),
    };
    let before_all = listeners.iter().map(|heard| heard.events()).sum::<u64>();
    let mut sent = 0;
    let mut metrics = Metrics::new();
    for length in [WARM_UP, length] {
        let count = rate * u64::try_from(length.as_millis()).expect("short") / 1000;
        for heard in &listeners {
            heard.forget_latency();
        }
        let before = Look::begin(system).await;
        let (publisher, payload, handle) = (publisher.clone(), payload.clone(), Handle::current());
        let answers = answers.clone();
        #[allow(clippy::cast_precision_loss)] // a small number
        let clockwork =
            paced(rate as f64, count, Arc::new(AtomicBool::new(false)), move |number, due| {
                let (publisher, payload, answers) =
                    (publisher.clone(), payload.clone(), answers.clone());
                handle.spawn(async move {
                    let number = usize::try_from(number).expect("64 bits");
                    publisher.publish(&payload, number, 1, due).await;
                    if let Some(answers) = answers {
                        one(&answers, &payload.delivered(number, due));
                    }
                });
            });
        sent += count;
        let joined = tokio::task::spawn_blocking(|| clockwork.join()).await;
        joined.expect("joined").expect("the sender does not fail");
        let wanted = before_all + sent * listeners.len() as u64;
        let heard = || listeners.iter().map(|heard| heard.events()).sum::<u64>();
        let all = async {
            while heard() < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let _ = tokio::time::timeout(super::ARRIVAL, all).await;
        let missing = wanted.saturating_sub(heard());
        let after = Look::end(system).await;
        let mut used = Metrics::new();
        after.since(&before, count * listeners.len() as u64, &mut used);
        // Growth has these names from its other half.
        for name in ["server_cpu_percent", "redis_cpu_percent", "clients_cpu_percent"] {
            metrics.insert(format!("latency_{name}"), used[name]);
        }
        metrics.insert("latency_others_cpu_percent".to_owned(), used["others_cpu_percent"]);
        metrics.insert("latency_lost".to_owned(), float(missing));
    }
    let mut all = histogram();
    for heard in &listeners {
        heard.add_latency(&mut all);
    }
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

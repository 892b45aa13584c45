//! Simulated clusters: gateways join, restart and leave; figures are late; nodes go where their
//! client libraries and load balancers send them.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;

const STEP: Duration = Duration::from_millis(250);
const AFTER: Duration = Duration::from_secs(30);
const PER_SECOND: u32 = 20;

/// Where a stream goes that has left a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landing {
    /// Where there are the fewest: load balancers with "least connections".
    Fewest,
    /// Any other gateway: client libraries that know all of them.
    Other,
    /// Any gateway, that of before too: load balancers that choose at random.
    Any,
    /// Where it was: load balancers that hash addresses.
    Back,
}

struct Gateway {
    id: MemberId,
    balance: Balance,
    own: u64,
    left: Option<Instant>,
    /// Its streams at each of the last steps, the latest last: others see one of them.
    past: Vec<u64>,
    /// How many steps late its record is.
    late: usize,
    exchanged: Option<Instant>,
    /// What it knows of the others.
    others: Vec<(MemberId, u64)>,
    asked: u64,
}

struct Cluster {
    rng: StdRng,
    landing: Landing,
    now: Instant,
    step: usize,
    last_id: u64,
    gateways: Vec<Gateway>,
    /// Streams on their way: when they arrive, and from where they come.
    moving: Vec<(Instant, MemberId)>,
    /// Streams that were asked since the last event.
    asked: u64,
    last_asked: Option<Instant>,
}

impl Cluster {
    fn new(seed: u64, landing: Landing, gateways: usize, most: u64) -> Cluster {
        let mut cluster = Cluster {
            rng: StdRng::seed_from_u64(seed),
            landing,
            now: Instant::now(),
            step: 0,
            last_id: 0,
            gateways: vec![],
            moving: vec![],
            asked: 0,
            last_asked: None,
        };
        for _ in 0..gateways {
            let own = cluster.rng.random_range(0..=most);
            cluster.join(own);
        }
        cluster
    }

    fn join(&mut self, own: u64) {
        self.last_id += 1;
        let late = self.rng.random_range(0..=8);
        self.gateways.push(Gateway {
            id: MemberId(self.last_id),
            balance: Balance::new(PER_SECOND, AFTER),
            own,
            left: None,
            past: vec![own; 9],
            late,
            exchanged: None,
            others: vec![],
            asked: 0,
        });
    }

    /// A gateway goes away, and its streams go elsewhere.
    fn leave(&mut self) {
        let index = self.rng.random_range(0..self.gateways.len());
        let gone = self.gateways.remove(index);
        for _ in 0..gone.own {
            let arrives = self.now + Duration::from_millis(self.rng.random_range(50..2100));
            self.moving.push((arrives, gone.id));
        }
    }

    fn land(&mut self, from: MemberId) {
        let all = self.gateways.len();
        let at = self.gateways.iter().position(|gateway| gateway.id == from);
        let index = match (self.landing, at) {
            (Landing::Fewest, _) => (0..all).min_by_key(|index| self.gateways[*index].own).unwrap(),
            (Landing::Back, Some(at)) => at,
            (Landing::Other, Some(at)) if all > 1 => (at + self.rng.random_range(1..all)) % all,
            _ => self.rng.random_range(0..all),
        };
        self.gateways[index].own += 1;
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.advance();
        }
    }

    fn advance(&mut self) {
        self.now += STEP;
        self.step += 1;
        let now = self.now;
        let landed: Vec<_> = self.moving.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, from) in landed {
            self.land(from);
        }
        for gateway in &mut self.gateways {
            gateway.past.rotate_left(1);
            *gateway.past.last_mut().unwrap() = gateway.own;
        }
        for index in 0..self.gateways.len() {
            // Each exchanges figures every two seconds, at a time of its own.
            if (self.step + index * 3).is_multiple_of(8) {
                let others = self.gateways.iter().enumerate().filter(|(other, _)| *other != index);
                let seen = |gateway: &Gateway| gateway.past[gateway.past.len() - 1 - gateway.late];
                let others = others.map(|(_, gateway)| (gateway.id, seen(gateway))).collect();
                self.gateways[index].others = others;
                self.gateways[index].exchanged = Some(now);
            }
            let gateway = &mut self.gateways[index];
            let figures = Figures {
                now,
                serves: true,
                own: gateway.own,
                leaving: 0,
                left: gateway.left,
                exchanged: gateway.exchanged,
                others: &gateway.others,
            };
            let (ask, _) = gateway.balance.next(&figures);
            if ask == 0 {
                continue;
            }
            assert!(ask <= u64::from(PER_SECOND), "{ask} at once");
            gateway.balance.asked(ask, ask, now);
            gateway.own -= ask;
            gateway.asked += ask;
            gateway.left = Some(now);
            let id = gateway.id;
            self.asked += ask;
            self.last_asked = Some(now);
            for _ in 0..ask {
                let arrives = now + Duration::from_millis(self.rng.random_range(50..2100));
                self.moving.push((arrives, id));
            }
        }
    }

    fn mean(&self) -> u64 {
        let all: u64 = self.gateways.iter().map(|gateway| gateway.own).sum();
        all.div_ceil(self.gateways.len() as u64)
    }

    /// The streams that must move to make all gateways equal.
    fn surplus(&self) -> u64 {
        let mean = self.mean();
        self.gateways.iter().map(|gateway| gateway.own.saturating_sub(mean)).sum()
    }

    fn counts(&self) -> Vec<u64> {
        self.gateways.iter().map(|gateway| gateway.own).collect()
    }

    fn is_even(&self) -> bool {
        let mean = self.mean();
        let most = mean + (mean / SURPLUS).max(MIN_SURPLUS);
        self.gateways.iter().all(|gateway| gateway.own <= most)
    }
}

/// A cluster in which gateways join, leave and restart for some minutes, and then none does.
fn after_events(seed: u64, landing: Landing, gateways: usize, most: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, landing, gateways, most);
    for _ in 0..cluster.rng.random_range(1..6) {
        let time = cluster.rng.random_range(1..60);
        cluster.run(Duration::from_secs(time));
        match cluster.rng.random_range(0..3) {
            0 => cluster.join(0),
            1 if cluster.gateways.len() > 2 => cluster.leave(),
            _ => {
                cluster.leave();
                // Of the only one, the nodes wait.
                if cluster.gateways.is_empty() {
                    cluster.join(0);
                } else {
                    cluster.run(Duration::from_secs(5));
                    cluster.join(0);
                }
            }
        }
    }
    // All that were on their way are there, and nothing has been decided since.
    cluster.run(Duration::from_secs(25));
    cluster.asked = 0;
    cluster
}

#[test]
fn streams_that_go_where_the_fewest_are_move_once_and_no_more_than_the_surplus() {
    for seed in 0..60 {
        let gateways = 2 + usize::try_from(seed % 11).unwrap();
        let most = [20, 300, 2000][usize::try_from(seed % 3).unwrap()];
        let mut cluster = after_events(seed, Landing::Fewest, gateways, most);
        let (before, surplus) = (cluster.counts(), cluster.surplus());
        cluster.run(Duration::from_mins(20));
        let after = cluster.counts();
        assert!(cluster.is_even(), "seed {seed}: {before:?} became {after:?}");
        // A stream that has left one gateway and is not counted at the next yet makes the mean look
        // lower to those that begin meanwhile: for six seconds at most.
        let on_their_way = (surplus / 2).min(6 * u64::from(PER_SECOND));
        let bound = surplus + cluster.gateways.len() as u64 + on_their_way;
        assert!(cluster.asked <= bound, "seed {seed}: {} of {surplus} moved", cluster.asked);
        let asked = cluster.asked;
        cluster.run(Duration::from_mins(20));
        assert_eq!(cluster.asked, asked, "seed {seed}: {after:?} became {:?}", cluster.counts());
    }
}

#[test]
fn streams_that_go_anywhere_even_out_and_come_to_rest() {
    for (number, landing) in [Landing::Other, Landing::Any].into_iter().enumerate() {
        for seed in 0..40 {
            let gateways = 2 + usize::try_from(seed % 11).unwrap();
            let most = [20, 300, 2000][usize::try_from(seed % 3).unwrap()];
            let seed = seed + 1000 * (1 + number as u64);
            let mut cluster = after_events(seed, landing, gateways, most);
            let (before, streams) = (cluster.counts(), cluster.counts().iter().sum::<u64>());
            cluster.run(Duration::from_hours(2));
            let what = format!("seed {seed}, {landing:?}: {before:?}, {:?}", cluster.counts());
            assert!(cluster.is_even(), "{what}");
            assert!(cluster.asked <= 2 * streams, "{what}: {} moved", cluster.asked);
            let asked = cluster.asked;
            cluster.run(Duration::from_hours(1));
            assert_eq!(cluster.asked, asked, "{what}: not at rest");
        }
    }
}

#[test]
fn a_hundred_gateways_even_out_after_one_has_restarted() {
    for seed in 0..3 {
        let mut cluster = Cluster::new(seed, Landing::Fewest, 99, 0);
        cluster.gateways.iter_mut().for_each(|gateway| gateway.own = 101);
        cluster.join(0);
        let surplus = cluster.surplus();
        cluster.run(Duration::from_mins(10));
        // One stream more than the mean is no reason: the hundredth fills as nodes come and go.
        assert!(cluster.asked <= surplus + 100, "{} of {surplus}", cluster.asked);
        assert!(cluster.is_even(), "{:?}", cluster.counts());
    }
}

#[test]
fn an_empty_gateway_beside_ten_gets_its_share() {
    let mut cluster = Cluster::new(1, Landing::Fewest, 10, 0);
    cluster.gateways.iter_mut().for_each(|gateway| gateway.own = 1000);
    cluster.join(0);
    cluster.run(Duration::from_mins(10));
    let last = cluster.gateways.last().unwrap().own;
    assert!(last > 850, "{:?}", cluster.counts());
    assert!(cluster.asked <= 910 + 11, "{}", cluster.asked);
}

#[test]
fn streams_that_come_back_are_asked_ever_less_often() {
    let mut cluster = Cluster::new(1, Landing::Back, 1, 0);
    cluster.gateways[0].own = 400;
    cluster.join(0);
    cluster.run(Duration::from_hours(1));
    // Pauses of 1, 2, 4, 8, 16 and 32 minutes.
    let batches = cluster.asked.div_ceil(200);
    assert!((4..=6).contains(&batches), "{} asked in an hour", cluster.asked);
    cluster.asked = 0;
    cluster.run(Duration::from_hours(12));
    assert!(cluster.asked <= 12 * 200, "{} asked in twelve hours", cluster.asked);
}

/// A gateway with streams, and others with these figures.
fn alone(own: u64, others: &[u64]) -> (Balance, impl Fn(&mut Balance, Duration) -> u64) {
    let start = Instant::now();
    let others: Vec<_> =
        others.iter().zip(100..).map(|(streams, id)| (MemberId(id), *streams)).collect();
    let look = move |balance: &mut Balance, at: Duration| {
        let now = start + at;
        let figures = Figures {
            now,
            serves: true,
            own,
            leaving: 0,
            left: None,
            exchanged: Some(now),
            others: &others,
        };
        balance.next(&figures).0
    };
    (Balance::new(PER_SECOND, AFTER), look)
}

/// How many streams it asks in its first batch, if all leave.
fn first_batch(own: u64, others: &[u64]) -> u64 {
    let (mut balance, look) = alone(own, others);
    look(&mut balance, Duration::ZERO);
    let mut asked = 0;
    for second in 0..10_000 {
        let at = AFTER + Duration::from_secs(second);
        let ask = look(&mut balance, at);
        if ask > 0 {
            balance.asked(ask, ask, Instant::now());
            asked += ask;
        } else if asked > 0 {
            break;
        }
    }
    asked
}

#[test]
fn records_that_lie_have_bounded_effects() {
    // Nothing, where all are even.
    assert_eq!(first_batch(1000, &[1000, 1000]), 0);
    // One that claims to be empty draws what would be its share, once; more of them half at most.
    assert_eq!(first_batch(1000, &[1000, 0]), 333);
    assert_eq!(first_batch(1000, &[0; 1000]), 500);
    // One that claims more than there can be stops all moves, and nothing overflows.
    assert_eq!(first_batch(1000, &[0, u64::MAX]), 0);
    assert_eq!(first_batch(5_000_000, &[u64::MAX; 1023]), 0);
}

#[test]
fn nothing_is_moved_before_the_same_gateways_have_served_for_a_time() {
    let (mut balance, look) = alone(100, &[0]);
    let (_, with_another) = alone(100, &[0, 0]);
    let seconds = Duration::from_secs;
    assert_eq!(look(&mut balance, seconds(0)), 0);
    assert_eq!(look(&mut balance, seconds(29)), 0);
    assert_eq!(with_another(&mut balance, seconds(30)), 0);
    assert_eq!(with_another(&mut balance, seconds(59)), 0);
    assert!(with_another(&mut balance, seconds(61)) > 0);
}

#[test]
fn a_draining_gateway_and_one_with_old_figures_ask_nobody() {
    let now = Instant::now();
    let others = [(MemberId(7), 0)];
    let figures = Figures {
        now,
        serves: true,
        own: 100,
        leaving: 0,
        left: None,
        exchanged: Some(now),
        others: &others,
    };
    let mut balance = Balance::new(PER_SECOND, AFTER);
    balance.next(&figures);
    let later = now + AFTER;
    let old = Figures { now: later, ..figures };
    assert_eq!(balance.next(&old), (0, None));
    let drains = Figures { now: later, exchanged: Some(later), serves: false, ..figures };
    assert_eq!(balance.next(&drains), (0, None));
    // It serves again: the time begins anew.
    let serves = Figures { serves: true, ..drains };
    assert_eq!(balance.next(&serves), (0, None));
}

#[test]
fn a_batch_without_streams_that_can_be_asked_ends() {
    let (mut balance, look) = alone(100, &[0]);
    look(&mut balance, Duration::ZERO);
    let wanted = look(&mut balance, AFTER);
    assert!(wanted > 0);
    balance.asked(wanted, 0, Instant::now() + AFTER);
    assert_eq!(look(&mut balance, AFTER + STEP), 0);
    assert!(look(&mut balance, AFTER + 2 * SETTLE) > 0);
}

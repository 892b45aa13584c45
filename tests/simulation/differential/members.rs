//! The members script: random exchanges of several gateways.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    CALLS, TAG,
    pair::{Pair, bytes},
};
use crate::redis::Reply;

const MEMBERS: &str = include_str!("../../../src/bus/redis/members.lua");

/// Random exchanges of the members script.
pub async fn members_are_alike(url: &str, seed: u64) {
    let mut pair = Pair::with(url).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut numbers = [0_u64; 4];
    for nth in 0..CALLS {
        let member = random.random_range(0..numbers.len());
        pair.now_ms += random.random_range(0..3000);
        let after = match random.random_range(0..6) {
            0 => 0,
            1 => numbers[member].saturating_sub(1),
            _ => numbers[member],
        };
        numbers[member] += 1;
        let mut argv = bytes(&[&format!("gateway-{member}"), "10000"]);
        let mut add = |value: String| argv.push(value.into_bytes());
        add(numbers[member].to_string());
        add(after.to_string());
        add(u8::from(random.random_bool(0.8)).to_string());
        add(format!("head {nth}"));
        for _ in 0..random.random_range(0..4) {
            add(random.random_range(0..8).to_string());
            add(if random.random_bool(0.3) { String::new() } else { format!("page {nth}") });
        }
        let keys = [format!("{TAG}:heads"), format!("{TAG}:pages:{member}")];
        // Redis lists a hash in any order, so members are compared as a set.
        let args = {
            let mut args = bytes(&["EVAL"]);
            let code = MEMBERS.replacen(
                "redis.call('TIME')",
                &format!("{{'{}', '{}'}}", pair.now_ms / 1000, pair.now_ms % 1000 * 1000),
                1,
            );
            args.push(code.into_bytes());
            args.push(b"2".to_vec());
            args.extend(keys.iter().map(|key| key.clone().into_bytes()));
            args.extend(argv);
            args
        };
        let real = sorted_members(pair.real(&args).await);
        let model = sorted_members(pair.model.call(&args));
        assert_eq!(real, model, "seed {seed}, call {nth}");
    }
}

fn sorted_members(reply: Reply) -> (Reply, Vec<Vec<Reply>>) {
    let Reply::Array(parts) = reply else { panic!("not an array: {reply:?}") };
    let (taken, members) = parts.split_first().expect("never empty");
    let mut members: Vec<Vec<Reply>> = members.chunks(3).map(<[Reply]>::to_vec).collect();
    members.sort_by_key(|member| format!("{:?}", member[0]));
    (taken.clone(), members)
}

//! Scripts, executed by Lua 5.1 with `redis.call` and `redis.pcall`, and the conversions that Redis
//! documents.

use std::{cell::RefCell, collections::HashMap};

use mlua::{Function, Lua, MultiValue, Table, Value, Variadic};

use super::{
    Reply, Server, command,
    reply::error::{self, NO_SCRIPT},
};

pub fn script(server: &mut Server, args: &[Vec<u8>]) -> Result<Reply, String> {
    match args {
        [_, what, code] if what.eq_ignore_ascii_case(b"LOAD") => {
            let sha = load(server, code);
            Ok(Reply::Bulk(sha.into_bytes()))
        }
        [_, what] if what.eq_ignore_ascii_case(b"FLUSH") => {
            server.scripts.clear();
            Ok(Reply::ok())
        }
        _ => Err(error::SYNTAX.into()),
    }
}

pub fn eval(server: &mut Server, args: &[Vec<u8>]) -> Result<Reply, String> {
    let [_, code, rest @ ..] = args else { return Err(error::arguments(args)) };
    load(server, code);
    let code = String::from_utf8_lossy(code).into_owned();
    run(server, &code, rest)
}

pub fn eval_sha(server: &mut Server, args: &[Vec<u8>]) -> Result<Reply, String> {
    let [_, sha, rest @ ..] = args else { return Err(error::arguments(args)) };
    let sha = String::from_utf8_lossy(sha).to_ascii_lowercase();
    let code = server.scripts.get(&sha).cloned().ok_or(NO_SCRIPT)?;
    run(server, &code, rest)
}

fn load(server: &mut Server, code: &[u8]) -> String {
    let code = String::from_utf8_lossy(code).into_owned();
    let sha = ::redis::Script::new(&code).get_hash().to_owned();
    server.scripts.insert(sha.clone(), code);
    sha
}

/// Runs a script: `args` are the number of keys, the keys, and the rest.
fn run(server: &mut Server, code: &str, args: &[Vec<u8>]) -> Result<Reply, String> {
    let [keys, rest @ ..] = args else { return Err(error::arguments(args)) };
    let keys: usize = command::number(keys)?;
    let (keys, argv) = rest
        .split_at_checked(keys)
        .ok_or("ERR Number of keys can't be greater than number of args")?;
    let mut run = || {
        let (lua, function) = compiled(code)?;
        execute(&lua, server, &function, keys, argv)
    };
    run().map_err(|error| in_words_of_redis(&error))
}

/// A script compiled once for each thread, as a server does: it runs thousands of times.
fn compiled(code: &str) -> mlua::Result<(Lua, Function)> {
    thread_local! {
        static LUA: Lua = Lua::new();
        static COMPILED: RefCell<HashMap<String, Function>> = RefCell::default();
    }
    let lua = LUA.with(Lua::clone);
    let known = COMPILED.with_borrow(|compiled| compiled.get(code).cloned());
    let function = match known {
        Some(function) => function,
        None => lua.load(code).set_name("@user_script").into_function()?,
    };
    COMPILED.with_borrow_mut(|compiled| compiled.insert(code.to_owned(), function.clone()));
    Ok((lua, function))
}

fn execute(
    lua: &Lua,
    server: &mut Server,
    function: &Function,
    keys: &[Vec<u8>],
    argv: &[Vec<u8>],
) -> mlua::Result<Reply> {
    let strings = |parts: &[Vec<u8>]| -> mlua::Result<Table> {
        let strings = parts.iter().map(|part| lua.create_string(part));
        lua.create_sequence_from(strings.collect::<mlua::Result<Vec<_>>>()?)
    };
    lua.globals().set("KEYS", strings(keys)?)?;
    lua.globals().set("ARGV", strings(argv)?)?;
    let server = RefCell::new(server);
    lua.scope(|scope| {
        let call = |args: Variadic<Value>| -> mlua::Result<Reply> {
            let args = args.iter().map(argument).collect::<mlua::Result<Vec<_>>>()?;
            let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
            let mut server = server.borrow_mut();
            Ok(command::execute(&mut server, &name, &args).unwrap_or_else(Reply::Error))
        };
        let redis = lua.create_table()?;
        redis.set(
            "call",
            scope.create_function(move |lua, args| match call(args)? {
                Reply::Error(text) => Err(mlua::Error::runtime(text)),
                reply => to_lua(lua, &reply),
            })?,
        )?;
        redis.set(
            "error_reply",
            lua.create_function(|lua, text: mlua::LuaString| {
                let table = lua.create_table()?;
                table.set("err", text)?;
                Ok(table)
            })?,
        )?;
        redis.set("pcall", scope.create_function(move |lua, args| to_lua(lua, &call(args)?))?)?;
        lua.globals().set("redis", redis)?;
        let mut values: MultiValue = function.call(())?;
        from_lua(&values.pop_front().unwrap_or(Value::Nil))
    })
}

fn argument(value: &Value) -> mlua::Result<Vec<u8>> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Integer(number) => Ok(number.to_string().into_bytes()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        _ => Err(mlua::Error::runtime(
            "ERR Lua redis lib command arguments must be strings or integers",
        )),
    }
}

fn to_lua(lua: &Lua, reply: &Reply) -> mlua::Result<Value> {
    let field = |name: &str, text: &str| -> mlua::Result<Value> {
        let table = lua.create_table()?;
        table.set(name, lua.create_string(text)?)?;
        Ok(Value::Table(table))
    };
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        #[allow(clippy::cast_precision_loss)] // Lua 5.1 has no other numbers
        Reply::Integer(number) => Value::Number(*number as f64),
        Reply::Bulk(bytes) => Value::String(lua.create_string(bytes)?),
        Reply::Status(text) => field("ok", text)?,
        Reply::Error(text) => field("err", text)?,
        Reply::Array(parts) => {
            let parts = parts.iter().map(|part| to_lua(lua, part));
            let parts = parts.collect::<mlua::Result<Vec<_>>>()?;
            Value::Table(lua.create_sequence_from(parts)?)
        }
    })
}

/// Numbers lose what stands behind the point, and an array ends at its first nil.
fn from_lua(value: &Value) -> mlua::Result<Reply> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.to_string_lossy()),
        _ => None,
    };
    Ok(match value {
        Value::Boolean(true) => Reply::Integer(1),
        Value::Integer(number) => Reply::Integer(*number),
        #[allow(clippy::cast_possible_truncation)] // as Redis does it
        Value::Number(number) => Reply::Integer(*number as i64),
        Value::String(text) => Reply::Bulk(text.as_bytes().to_vec()),
        Value::Table(table) => {
            if let Some(error) = text(&table.raw_get("err")?) {
                return Ok(Reply::Error(error));
            }
            if let Some(status) = text(&table.raw_get("ok")?) {
                return Ok(Reply::Status(status));
            }
            let parts = table.sequence_values::<Value>();
            Reply::Array(parts.map(|part| from_lua(&part?)).collect::<mlua::Result<_>>()?)
        }
        _ => Reply::Nil,
    })
}

/// An error of a command keeps its code; one of Lua itself has `ERR`.
fn in_words_of_redis(error: &mlua::Error) -> String {
    match error {
        mlua::Error::CallbackError { cause, .. } => in_words_of_redis(cause),
        mlua::Error::RuntimeError(text) => {
            let text = text.lines().next().unwrap_or_default();
            let code = text.split(' ').next().unwrap_or_default();
            let has_code = !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase());
            if has_code { text.to_owned() } else { format!("ERR {text}") }
        }
        other => format!("ERR {other}"),
    }
}

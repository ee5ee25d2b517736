//! Tokenizers in files: JSON, with the bytes of tokens in base64.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::encode::Model;
use crate::vocabulary::Vocabulary;
use crate::{Error, Splitter};

const FORMAT: &str = "rustbpe 1";

/// Write a tokenizer: whole or not at all.
pub fn save(model: &Model, path: &Path) -> io::Result<()> {
    let mut tokens: Vec<Value> = Vec::new();
    for (id, token) in model.vocabulary.iter() {
        tokens.resize(id as usize, Value::Null);
        tokens.push(BASE64.encode(token).into());
    }
    let specials = model.vocabulary.specials().iter();
    let specials: Map<String, Value> = specials.map(|(s, id)| (s.clone(), (*id).into())).collect();
    let description = json!({
        "format": FORMAT,
        "pattern": model.splitter.pattern(),
        "special_tokens": specials,
        "tokens": tokens, // the place in the list is the id; null where no token has it
    });
    if path.file_name().is_none() {
        return Err(io::Error::other("the path names no file"));
    }
    static SAVES: AtomicUsize = AtomicUsize::new(0);
    let number = SAVES.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_file_name(format!(".rustbpe-{}-{number}.tmp", std::process::id()));
    let write = || {
        let mut file = fs::File::create(&unfinished)?;
        writeln!(file, "{description}")?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished); // the error that matters is the first
    }
    written
}

/// Read what [`save`] wrote.
pub fn load(path: &Path) -> io::Result<Result<(Splitter, Vocabulary), Error>> {
    let text = fs::read(path)?;
    Ok(parse(&text).map_err(|reason| Error::File { path: path.display().to_string(), reason }))
}

fn parse(text: &[u8]) -> Result<(Splitter, Vocabulary), String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if value["format"] != FORMAT {
        return Err(format!("its format is {}, not {FORMAT:?}", value["format"]));
    }
    let pattern = value["pattern"].as_str().ok_or("it has no pattern")?;
    let mut ranks = Vec::new();
    for (id, token) in value["tokens"].as_array().ok_or("it has no tokens")?.iter().enumerate() {
        match token {
            Value::Null => {}
            Value::String(token) => {
                let token = BASE64.decode(token).map_err(|e| format!("token {id}: {e}"))?;
                ranks.push((token, id as i64));
            }
            other => return Err(format!("token {id} is {other}")),
        }
    }
    let mut specials = Vec::new();
    for (name, id) in value["special_tokens"].as_object().ok_or("it has no special_tokens")? {
        let id = id.as_i64().ok_or_else(|| format!("special token {name:?} has id {id}"))?;
        specials.push((name.clone(), id));
    }
    let splitter = Splitter::new(pattern).map_err(|e| e.to_string())?;
    let plain = Vocabulary::from_ranks(ranks).map_err(|e| e.to_string())?;
    Ok((splitter, plain.with_specials(specials).map_err(|e| e.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_with_gaps_and_specials() {
        let mut ranks: Vec<_> = (0..=255u8).map(|b| (vec![b], i64::from(255 - b))).collect();
        ranks.push((b"\xffab".to_vec(), 300));
        let plain = Vocabulary::from_ranks(ranks).unwrap();
        let vocabulary = plain.with_specials(vec![("<\"é\">".into(), 299)]).unwrap();
        let model = Model::new(Splitter::new(r"\S+|\s").unwrap(), vocabulary);
        let folder = std::env::temp_dir().join(format!("rustbpe-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("t.json");
        save(&model, &path).unwrap();
        let (splitter, loaded) = load(&path).unwrap().unwrap();
        assert_eq!(splitter.pattern(), model.splitter.pattern());
        assert!(loaded.iter().eq(model.vocabulary.iter()));
        assert_eq!(loaded.specials(), model.vocabulary.specials());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing half-written is left");
        assert!(save(&model, &folder.join("no/such/folder")).is_err());
        for broken in ["", "{}", r#"{"format": "rustbpe 1", "pattern": "a", "tokens": [7]}"#] {
            fs::write(&path, broken).unwrap();
            let error = load(&path).unwrap().unwrap_err().to_string();
            assert!(error.contains("t.json"), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
        assert!(load(&path).is_err());
    }
}

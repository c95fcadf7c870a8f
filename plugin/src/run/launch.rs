//! A line of gst-launch, put together word by word: for GStreamer, and for a person.

/// A pipeline in the language of gst-launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Launch {
    words: Vec<Word>,
}

#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// An element, caps, a link.
    Plain(String),
    /// A property and its value, and whether nobody may see that.
    Set(String, String, bool),
    /// Text of the user's.
    Raw(String),
}

impl Launch {
    /// An element that nothing comes before.
    pub(crate) fn element(&mut self, name: &str) -> &mut Self {
        self.words.push(Word::Plain(name.to_owned()));
        self
    }

    /// An element or caps, linked to what is there.
    pub(crate) fn link(&mut self, name: &str) -> &mut Self {
        self.words.push(Word::Plain("!".to_owned()));
        self.element(name)
    }

    /// Another branch of an element that stands before.
    pub(crate) fn branch(&mut self, name: &str) -> &mut Self {
        self.element(&format!("{name}."))
    }

    /// A property of the last element.
    pub(crate) fn set(&mut self, property: &str, value: &str) -> &mut Self {
        self.words.push(Word::Set(property.to_owned(), value.to_owned(), false));
        self
    }

    /// [`Launch::set`] where nothing follows.
    pub(crate) fn set_last(&mut self, property: &str, value: &str) {
        self.set(property, value);
    }

    /// A property whose value is not shown.
    pub(crate) fn set_secret(&mut self, property: &str, value: &str) {
        self.words.push(Word::Set(property.to_owned(), value.to_owned(), true));
    }

    /// Elements as the user wrote them.
    pub(crate) fn raw(&mut self, text: &str) {
        self.words.push(Word::Raw(text.trim().to_owned()));
    }

    /// The same, linked to what is there.
    pub(crate) fn link_raw(&mut self, text: &str) {
        self.words.push(Word::Plain("!".to_owned()));
        self.raw(text);
    }

    /// For `gst_parse_launch`.
    pub(crate) fn description(&self) -> String {
        self.joined(|word| match word {
            Word::Plain(text) | Word::Raw(text) => text.clone(),
            Word::Set(property, value, _) => format!("{property}={}", quoted(value)),
        })
    }

    /// For a shell, without secrets.
    pub(crate) fn shell(&self) -> String {
        let words = self.joined(|word| match word {
            Word::Plain(text) => for_shell(text),
            Word::Raw(text) => text.clone(),
            Word::Set(property, _, true) => format!("{property}=…"),
            Word::Set(property, value, false) => for_shell(&format!("{property}={}", quoted(value))),
        });
        format!("gst-launch-1.0 -e {words}")
    }

    fn joined(&self, text: impl Fn(&Word) -> String) -> String {
        self.words.iter().map(text).collect::<Vec<_>>().join(" ")
    }
}

/// A value as GStreamer reads it: in quotes where it has more than letters.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+%@".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A word as a shell reads it.
fn for_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+%=@".contains(c);
    if word == "!" || word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_what_they_say() {
        let mut launch = Launch::default();
        launch.element("filesrc").set("location", "/a b/it's \"x\".mp4").link("decodebin");
        launch.set_secret("user-pw", "pass word");
        assert_eq!(launch.description(), r#"filesrc location="/a b/it's \"x\".mp4" ! decodebin user-pw="pass word""#);
        assert_eq!(
            launch.shell(),
            r#"gst-launch-1.0 -e filesrc 'location="/a b/it'\''s \"x\".mp4"' ! decodebin user-pw=…"#
        );
    }
}

//! The Porter stemmer with NLTK's extensions, which rouge_score uses.
//!
//! Porter 1980, "An algorithm for suffix stripping". It is not Porter2, the "English" stemmer of Snowball, and it differs
//! from Porter's own revision too: a few irregular words, `-ies` and `-ied` of four letters, `y` after a consonant
//! becoming `i` wherever more than one letter stands before it, `-alli`, `-fulli`, `-logi`, and short stems of a vowel and
//! a consonant that count as consonant-vowel-consonant.

/// A suffix, what takes its place, and what must hold of the stem before it.
type Rule = (&'static str, &'static str, fn(&[u8]) -> bool);

const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

const STEP_1A: [Rule; 4] = [
    ("sses", "ss", always),
    ("ies", "i", always),
    ("ss", "ss", always),
    ("s", "", always),
];

const STEP_2: [Rule; 22] = [
    ("ational", "ate", has_measure),
    ("tional", "tion", has_measure),
    ("enci", "ence", has_measure),
    ("anci", "ance", has_measure),
    ("izer", "ize", has_measure),
    ("bli", "ble", has_measure),
    ("alli", "al", has_measure),
    ("entli", "ent", has_measure),
    ("eli", "e", has_measure),
    ("ousli", "ous", has_measure),
    ("ization", "ize", has_measure),
    ("ation", "ate", has_measure),
    ("ator", "ate", has_measure),
    ("alism", "al", has_measure),
    ("iveness", "ive", has_measure),
    ("fulness", "ful", has_measure),
    ("ousness", "ous", has_measure),
    ("aliti", "al", has_measure),
    ("iviti", "ive", has_measure),
    ("biliti", "ble", has_measure),
    ("fulli", "ful", has_measure),
    // NLTK measures the stem with the `l` of `logi`.
    ("logi", "log", |stem| {
        measure_of(stem.iter().chain(b"l")) > 0
    }),
];

const STEP_3: [Rule; 7] = [
    ("icate", "ic", has_measure),
    ("ative", "", has_measure),
    ("alize", "al", has_measure),
    ("iciti", "ic", has_measure),
    ("ical", "ic", has_measure),
    ("ful", "", has_measure),
    ("ness", "", has_measure),
];

const STEP_4: [Rule; 19] = [
    ("al", "", is_long),
    ("ance", "", is_long),
    ("ence", "", is_long),
    ("er", "", is_long),
    ("ic", "", is_long),
    ("able", "", is_long),
    ("ible", "", is_long),
    ("ant", "", is_long),
    ("ement", "", is_long),
    ("ment", "", is_long),
    ("ent", "", is_long),
    ("ion", "", |stem| {
        is_long(stem) && matches!(stem.last(), Some(b's' | b't'))
    }),
    ("ou", "", is_long),
    ("ism", "", is_long),
    ("ate", "", is_long),
    ("iti", "", is_long),
    ("ous", "", is_long),
    ("ive", "", is_long),
    ("ize", "", is_long),
];

/// Stem of a word of lower-case ASCII letters and digits.
pub(crate) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let mut word = word.to_owned();
    step_1a(&mut word);
    step_1b(&mut word);
    step_1c(&mut word);
    step_2(&mut word);
    apply(&mut word, &STEP_3);
    apply(&mut word, &STEP_4);
    step_5(&mut word);
    word
}

/// The first rule whose suffix the word has decides.
fn apply(word: &mut String, rules: &[Rule]) {
    let Some((suffix, replacement, holds)) = rules.iter().find(|rule| word.ends_with(rule.0))
    else {
        return;
    };
    let stem_len = word.len() - suffix.len();
    if holds(&word.as_bytes()[..stem_len]) {
        word.truncate(stem_len);
        word.push_str(replacement);
    }
}

fn step_1a(word: &mut String) {
    match word.len() == 4 && word.ends_with("ies") {
        true => word.truncate(3),
        false => apply(word, &STEP_1A),
    }
}

fn step_1b(word: &mut String) {
    if word.ends_with("ied") {
        let kept = if word.len() == 4 { 1 } else { 2 };
        return word.truncate(word.len() - kept);
    }
    if word.ends_with("eed") {
        return apply(word, &[("eed", "ee", has_measure)]);
    }
    let stem_len = ["ed", "ing"].into_iter().find_map(|suffix| {
        let stem = word.strip_suffix(suffix)?;
        has_vowel(stem.as_bytes()).then_some(stem.len())
    });
    let Some(stem_len) = stem_len else { return };
    word.truncate(stem_len);
    let stem = word.as_bytes();
    if ["at", "bl", "iz"].iter().any(|end| word.ends_with(end)) {
        word.push('e');
    } else if ends_in_double_consonant(stem) {
        if !matches!(stem.last(), Some(b'l' | b's' | b'z')) {
            word.pop();
        }
    } else if measure(stem) == 1 && ends_in_cvc(stem) {
        word.push('e');
    }
}

fn step_1c(word: &mut String) {
    let holds = |stem: &[u8]| stem.len() > 1 && consonants(stem).last() == Some(true);
    apply(word, &[("y", "i", holds)]);
}

fn step_2(word: &mut String) {
    if let Some(stem) = word.strip_suffix("alli")
        && has_measure(stem.as_bytes())
    {
        word.truncate(word.len() - 2);
        return step_2(word);
    }
    apply(word, &STEP_2);
}

fn step_5(word: &mut String) {
    if let Some(stem) = word.strip_suffix('e') {
        let stem = stem.as_bytes();
        if is_long(stem) || measure(stem) == 1 && !ends_in_cvc(stem) {
            word.pop();
        }
    }
    if word.ends_with("ll") && is_long(&word.as_bytes()[..word.len() - 1]) {
        word.pop();
    }
}

/// For each letter whether it is a consonant: a `y` is one at the start and after a vowel.
fn consonants<'a>(word: impl IntoIterator<Item = &'a u8>) -> impl Iterator<Item = bool> {
    word.into_iter().scan(false, |before, letter| {
        *before = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*before,
            _ => true,
        };
        Some(*before)
    })
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure_of<'a>(word: impl IntoIterator<Item = &'a u8>) -> usize {
    let mut vowel = false;
    consonants(word)
        .filter(|&consonant| std::mem::replace(&mut vowel, !consonant) && consonant)
        .count()
}

fn measure(word: &[u8]) -> usize {
    measure_of(word)
}

fn always(_: &[u8]) -> bool {
    true
}

fn has_measure(stem: &[u8]) -> bool {
    measure(stem) > 0
}

fn is_long(stem: &[u8]) -> bool {
    measure(stem) > 1
}

fn has_vowel(stem: &[u8]) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_in_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., a, b] if a == b) && consonants(word).last() == Some(true)
}

fn ends_in_cvc(word: &[u8]) -> bool {
    let flags: Vec<bool> = consonants(word).collect();
    match flags[..] {
        [false, true] => true,
        [.., true, false, true] => !matches!(word.last(), Some(b'w' | b'x' | b'y')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::stem;

    #[test]
    fn nltks_variant() {
        let stems = [
            ("caresses", "caress"),
            ("flies", "fli"),
            ("dies", "die"),
            ("agreed", "agre"),
            ("enjoyment", "enjoy"),
            ("happy", "happi"),
            ("spy", "spi"),
            ("relational", "relat"),
            ("geology", "geolog"),
            ("radically", "radic"),
            ("hopping", "hop"),
            ("filing", "file"),
            ("controlling", "control"),
            ("skies", "sky"),
            ("yyyy", "yyyi"),
            ("1990s", "1990"),
        ];
        for (word, expected) in stems {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}

//! A grammar for English sentences with their German translation.

use crate::draw::Draw;
use crate::lexicon::*;

/// Case of a German noun phrase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Nominative,
    Accusative,
    Dative,
}

/// A noun phrase in both languages.
struct Phrase {
    en: String,
    de: String,
    plural: bool,
}

/// A finite clause taken apart, so that German can be put in any order.
struct Clause {
    subject: Phrase,
    /// English after the subject, in the tense of the clause.
    en_predicate: String,
    /// German finite verb of a main clause.
    finite: String,
    /// German between the verbs: object and place.
    middle: String,
    /// What ends a main clause: prefix, infinitive or participle.
    end: String,
    /// What ends a subordinate clause: all verbs.
    end_final: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tense {
    Present,
    Past,
    Modal,
}

/// One sentence pair.
pub(crate) fn pair(draw: &mut Draw) -> (String, String) {
    let (en, de) = match draw.number(0, 9) {
        0 | 1 => plain(draw),
        2 | 3 => fronted(draw),
        4 => negated(draw),
        5 => question(draw),
        6 => reported(draw),
        7 => reason(draw),
        8 => condition(draw),
        _ => giving(draw),
    };
    (capitalised(&en), capitalised(&de))
}

/// "The man opens the door." / "Der Mann macht die Tür auf."
fn plain(draw: &mut Draw) -> (String, String) {
    let tense = tense(draw);
    let clause = clause(draw, tense, true);
    (
        format!("{} {}.", clause.subject.en, clause.en_predicate),
        format!("{}.", clause.verb_second(&clause.subject.de, "")),
    )
}

/// "Today the man opens the door." / "Heute macht der Mann die Tür auf."
fn fronted(draw: &mut Draw) -> (String, String) {
    let tense = tense(draw);
    let (en, de) = draw.pick(if tense == Tense::Past { THEN } else { NOW });
    let clause = clause(draw, tense, false);
    (
        format!("{en} {} {}.", clause.subject.en, clause.en_predicate),
        format!("{}.", clause.verb_second(de, &clause.subject.de)),
    )
}

/// "The man does not open the door." / "Der Mann macht die Tür nicht auf."
fn negated(draw: &mut Draw) -> (String, String) {
    let subject = being(draw, Case::Nominative);
    let (verb, object) = predicate(draw, false);
    let plural = usize::from(subject.plural);
    let does = ["does not", "do not"][plural];
    let en = join(&[&subject.en, does, verb.en[0], verb.particle, &object.0]);
    let de = join(&[
        &subject.de,
        verb.de[plural],
        &object.1,
        "nicht",
        verb.prefix,
    ]);
    (format!("{en}."), format!("{de}."))
}

/// "Does the man open the door?" / "Macht der Mann die Tür auf?"
fn question(draw: &mut Draw) -> (String, String) {
    let subject = being(draw, Case::Nominative);
    let (verb, object) = predicate(draw, true);
    let plural = usize::from(subject.plural);
    let en = join(&[
        ["does", "do"][plural],
        &subject.en,
        verb.en[0],
        verb.particle,
        &object.0,
    ]);
    let de = join(&[verb.de[plural], &subject.de, &object.1, verb.prefix]);
    (format!("{en}?"), format!("{de}?"))
}

/// "The woman believes that the man opens the door." / "Die Frau glaubt, dass der Mann die Tür aufmacht."
fn reported(draw: &mut Draw) -> (String, String) {
    let subject = being(draw, Case::Nominative);
    let (en, de) = draw.pick(CLAUSE_VERBS);
    let tense = tense(draw);
    let clause = clause(draw, tense, false);
    let plural = usize::from(subject.plural);
    (
        format!(
            "{} {} that {} {}.",
            subject.en,
            en[1 - plural],
            clause.subject.en,
            clause.en_predicate
        ),
        format!(
            "{} {}, dass {}.",
            subject.de,
            de[plural],
            clause.verb_final()
        ),
    )
}

/// "The child laughs because the man opens the door." / "Das Kind lacht, weil der Mann die Tür aufmacht."
fn reason(draw: &mut Draw) -> (String, String) {
    let subject = being(draw, Case::Nominative);
    let verb = draw.pick(PLAIN_VERBS);
    let tense = tense(draw);
    let clause = clause(draw, tense, false);
    let plural = usize::from(subject.plural);
    let en = join(&[&subject.en, verb.en[1 - plural], verb.particle]);
    let de = join(&[&subject.de, verb.de[plural], verb.prefix]);
    (
        format!(
            "{en} because {} {}.",
            clause.subject.en, clause.en_predicate
        ),
        format!("{de}, weil {}.", clause.verb_final()),
    )
}

/// "If the man opens the door, the cat sleeps." / "Wenn der Mann die Tür aufmacht, schläft die Katze."
fn condition(draw: &mut Draw) -> (String, String) {
    let first = clause(draw, Tense::Present, false);
    let subject = being(draw, Case::Nominative);
    let verb = draw.pick(PLAIN_VERBS);
    let plural = usize::from(subject.plural);
    let en = join(&[&subject.en, verb.en[1 - plural], verb.particle]);
    let de = join(&[verb.de[plural], &subject.de, verb.prefix]);
    (
        format!("if {} {}, {en}.", first.subject.en, first.en_predicate),
        format!("wenn {}, {de}.", first.verb_final()),
    )
}

/// "The father gives the child a book." / "Der Vater gibt dem Kind ein Buch."
fn giving(draw: &mut Draw) -> (String, String) {
    let subject = being(draw, Case::Nominative);
    let verb = draw.pick(GIVING_VERBS);
    let receiver = singular(draw, BEINGS, Case::Dative, 20);
    let thing = phrase(draw, THINGS, Case::Accusative);
    let plural = usize::from(subject.plural);
    match tense(draw) {
        Tense::Present => (
            join(&[&subject.en, verb.en[1 - plural], &receiver.en, &thing.en]) + ".",
            join(&[&subject.de, verb.de[plural], &receiver.de, &thing.de]) + ".",
        ),
        Tense::Past => (
            join(&[&subject.en, verb.en[2], &receiver.en, &thing.en]) + ".",
            join(&[
                &subject.de,
                ["hat", "haben"][plural],
                &receiver.de,
                &thing.de,
                verb.de[2],
            ]) + ".",
        ),
        Tense::Modal => {
            let (en, de) = draw.pick(MODALS);
            (
                join(&[&subject.en, en[plural], verb.en[0], &receiver.en, &thing.en]) + ".",
                join(&[&subject.de, de[plural], &receiver.de, &thing.de, verb.de[1]]) + ".",
            )
        }
    }
}

fn tense(draw: &mut Draw) -> Tense {
    *draw.pick(&[Tense::Present, Tense::Past, Tense::Modal])
}

/// Subject, verb and perhaps an object and a place.
fn clause(draw: &mut Draw, tense: Tense, place: bool) -> Clause {
    let subject = being(draw, Case::Nominative);
    let (verb, object) = predicate(draw, true);
    let (en_place, de_place) = match place && draw.chance(50) {
        true => *draw.pick(PLACES),
        false => ("", ""),
    };
    let plural = usize::from(subject.plural);
    let middle = join(&[&object.1, de_place]);
    let rest = join(&[verb.particle, &object.0, en_place]);
    let prefixed = |form: &str| format!("{}{form}", verb.prefix);
    let (en_verb, finite, end, end_final) = match tense {
        Tense::Present => (
            verb.en[1 - plural].to_owned(),
            verb.de[plural].to_owned(),
            verb.prefix.to_owned(),
            prefixed(verb.de[plural]),
        ),
        Tense::Past => {
            let auxiliary = match verb.motion {
                true => ["ist", "sind"][plural],
                false => ["hat", "haben"][plural],
            };
            let participle = prefixed(verb.de[2]);
            let last = join(&[&participle, auxiliary]);
            (
                verb.en[2].to_owned(),
                auxiliary.to_owned(),
                participle,
                last,
            )
        }
        Tense::Modal => {
            let (en, de) = draw.pick(MODALS);
            let infinitive = prefixed(verb.de[1]);
            let last = join(&[&infinitive, de[plural]]);
            (
                join(&[en[plural], verb.en[0]]),
                de[plural].to_owned(),
                infinitive,
                last,
            )
        }
    };
    Clause {
        subject,
        en_predicate: join(&[&en_verb, &rest]),
        finite,
        end,
        end_final,
        middle,
    }
}

impl Clause {
    /// Main clause: `first`, the finite verb, `second`, the middle, the end.
    fn verb_second(&self, first: &str, second: &str) -> String {
        join(&[first, &self.finite, second, &self.middle, &self.end])
    }

    /// Subordinate clause.
    fn verb_final(&self) -> String {
        join(&[&self.subject.de, &self.middle, &self.end_final])
    }
}

/// A verb with an object that suits it, or none. Objects of a negated clause are definite, so that "nicht" is right.
fn predicate(draw: &mut Draw, any_object: bool) -> (&'static Verb, (String, String)) {
    let (verbs, nouns): (&'static [Verb], &'static [Noun]) = match draw.number(0, 9) {
        0 | 1 => return (draw.pick(PLAIN_VERBS), (String::new(), String::new())),
        2..=4 => (THING_VERBS, THINGS),
        5 => (FOOD_VERBS, &THINGS[FOOD]),
        6 => (TEXT_VERBS, &THINGS[TEXTS]),
        7 | 8 => (OPENING_VERBS, OPENINGS),
        _ => (BEING_VERBS, BEINGS),
    };
    let verb = draw.pick(verbs);
    let object = match any_object {
        true => phrase(draw, nouns, Case::Accusative),
        false => definite(draw, nouns, Case::Accusative),
    };
    (verb, (object.en, object.de))
}

/// A subject.
fn being(draw: &mut Draw, case: Case) -> Phrase {
    phrase(draw, BEINGS, case)
}

/// A noun phrase, one in four in the plural.
fn phrase(draw: &mut Draw, nouns: &'static [Noun], case: Case) -> Phrase {
    if draw.chance(25) {
        plural(draw, nouns)
    } else {
        singular(draw, nouns, case, 35)
    }
}

/// A noun phrase with "the".
fn definite(draw: &mut Draw, nouns: &'static [Noun], case: Case) -> Phrase {
    if draw.chance(25) {
        plural(draw, nouns)
    } else {
        let noun = draw.pick(nouns);
        build(noun, adjective(draw, nouns, 35), ("the", None), case)
    }
}

/// Plural with "the"; nominative and accusative are alike, the dative is not used.
fn plural(draw: &mut Draw, nouns: &'static [Noun]) -> Phrase {
    let noun = draw.pick(nouns);
    let (en, de) = match adjective(draw, nouns, 35) {
        Some((en, de)) => (en, format!("{de}en")),
        None => ("", String::new()),
    };
    Phrase {
        en: join(&["the", en, noun.en[1]]),
        de: join(&["die", &de, noun.de[1]]),
        plural: true,
    }
}

fn singular(draw: &mut Draw, nouns: &'static [Noun], case: Case, adjectives: u32) -> Phrase {
    let noun = draw.pick(nouns);
    let adjective = adjective(draw, nouns, adjectives);
    let determiner = match draw.number(0, 5) {
        0..=2 => ("the", None),
        // Things are owned, people are not.
        5 if !std::ptr::eq(nouns, BEINGS) => {
            let (en, de) = draw.pick(POSSESSIVES);
            (*en, Some(*de))
        }
        _ => ("a", Some("ein")),
    };
    build(noun, adjective, determiner, case)
}

/// An adjective that suits the nouns: nobody is green.
fn adjective(
    draw: &mut Draw,
    nouns: &[Noun],
    percent: u32,
) -> Option<(&'static str, &'static str)> {
    let adjectives = match std::ptr::eq(nouns, BEINGS) {
        true => BEING_ADJECTIVES,
        false => THING_ADJECTIVES,
    };
    draw.chance(percent).then(|| *draw.pick(adjectives))
}

/// Puts determiner, adjective and noun into agreement; `determiner`: English, and the stem of a German ein-word.
fn build(
    noun: &Noun,
    adjective: Option<(&str, &str)>,
    determiner: (&str, Option<&str>),
    case: Case,
) -> Phrase {
    use Case::{Accusative, Dative, Nominative};
    use Gender::{Feminine, Masculine, Neuter};
    let article = match (case, noun.gender) {
        (Nominative, Masculine) => ("der", ""),
        (Accusative, Masculine) => ("den", "en"),
        (Nominative | Accusative, Neuter) => ("das", ""),
        (Nominative | Accusative, Feminine) => ("die", "e"),
        (Dative, Feminine) => ("der", "er"),
        (Dative, Masculine | Neuter) => ("dem", "em"),
    };
    let german = match determiner.1 {
        None => article.0.to_owned(),
        Some(stem) => format!("{stem}{}", article.1),
    };
    // Weak endings after the definite article; an ein-word without ending leaves the marking to the adjective.
    let ending = match (case, noun.gender, determiner.1) {
        (Nominative, Masculine, Some(_)) => "er",
        (Nominative | Accusative, Neuter, Some(_)) => "es",
        (Nominative, _, _) | (Accusative, Feminine | Neuter, _) => "e",
        (Accusative, Masculine, _) | (Dative, _, _) => "en",
    };
    let (en_adjective, de_adjective) = match adjective {
        Some((en, de)) => (en, format!("{de}{ending}")),
        None => ("", String::new()),
    };
    let after = if en_adjective.is_empty() {
        noun.en[0]
    } else {
        en_adjective
    };
    let english = match determiner.0 {
        "a" if after.starts_with(['a', 'e', 'i', 'o', 'u']) => "an",
        other => other,
    };
    Phrase {
        en: join(&[english, en_adjective, noun.en[0]]),
        de: join(&[&german, &de_adjective, noun.de[0]]),
        plural: false,
    }
}

/// Words with single spaces, empty ones left out.
fn join(words: &[&str]) -> String {
    words
        .iter()
        .filter(|word| !word.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phrase_of(
        en: &str,
        adjective: Option<(&str, &str)>,
        determiner: (&str, Option<&str>),
        case: Case,
    ) -> [String; 2] {
        let noun = BEINGS
            .iter()
            .chain(THINGS)
            .find(|noun| noun.en[0] == en)
            .unwrap();
        let phrase = build(noun, adjective, determiner, case);
        [phrase.en, phrase.de]
    }

    #[test]
    fn determiner_and_adjective_agree_with_the_noun() {
        let old = Some(("old", "alt"));
        let (the, a) = (("the", None), ("a", Some("ein")));
        let cases = [
            (
                "man",
                the,
                Case::Nominative,
                ["the old man", "der alte Mann"],
            ),
            ("man", a, Case::Nominative, ["an old man", "ein alter Mann"]),
            (
                "man",
                the,
                Case::Accusative,
                ["the old man", "den alten Mann"],
            ),
            (
                "man",
                a,
                Case::Accusative,
                ["an old man", "einen alten Mann"],
            ),
            ("man", the, Case::Dative, ["the old man", "dem alten Mann"]),
            ("man", a, Case::Dative, ["an old man", "einem alten Mann"]),
            (
                "woman",
                the,
                Case::Accusative,
                ["the old woman", "die alte Frau"],
            ),
            (
                "woman",
                a,
                Case::Nominative,
                ["an old woman", "eine alte Frau"],
            ),
            (
                "woman",
                a,
                Case::Dative,
                ["an old woman", "einer alten Frau"],
            ),
            (
                "child",
                the,
                Case::Nominative,
                ["the old child", "das alte Kind"],
            ),
            (
                "child",
                a,
                Case::Accusative,
                ["an old child", "ein altes Kind"],
            ),
            (
                "child",
                a,
                Case::Dative,
                ["an old child", "einem alten Kind"],
            ),
        ];
        for (noun, determiner, case, expected) in cases {
            assert_eq!(phrase_of(noun, old, determiner, case), expected);
        }
        assert_eq!(
            phrase_of("egg", None, a, Case::Accusative),
            ["an egg", "ein Ei"]
        );
    }
}

//! Languages: text sorts, compares and changes case under ICU's collations exactly as in native PostgreSQL.

#![allow(clippy::unwrap_used)]

mod harness;

use dormouse_loadtest::client::Client;
use dormouse_loadtest::native::Native;
use harness::programs;

/// Words on which the languages below disagree: accents, digraphs, ligatures, case, numbers, scripts.
const WORDS: &str = "a A ä Ä á à â ã å Å æ Æ aa Aa AA ab az b B c C č ç ch Ch CH cz cu d dz đ e é è ê ë f g ğ h i I ı İ \
    j k l ll Ll lz m n ñ nz o ö Ö ø Ø ő ó oe œ of p q r rr s S ß ss sz š ś ş t þ u ü Ü ű ue v w x y ý z Z zz ž ż \
    cote coté côte côté Müller Mueller Muller Mufti resume résumé Résumé co-op coop Co-op item2 item10 item1 \
    2 10 1 ١ ٢ α β γ ά Ω ω σ ς а б в г ґ д е ё ж й и я ї א ב ג ا ب ت क ख ग ก ข เก 가 나 한 글 \
    あ ア い イ か が カ ガ きよう きょう キョウ は ば ぱ ハ バ パ 亜 日 本 日本 東京 京都 一 二 三 四 五 \
    中 国 中国 中文 阿 不 爱 重 长 行 龙 龍 汉 漢 字 北京 上海 张 李 王 赵 ﬁ fi ① 𝐀 😀";

/// Collations by name, and those made by hand.
const COLLATIONS: &[&str] = &[
    "en-x-icu",
    "de-x-icu",
    "de-AT-x-icu",
    "sv-x-icu",
    "da-x-icu",
    "nb-x-icu",
    "fi-x-icu",
    "es-x-icu",
    "tr-x-icu",
    "az-x-icu",
    "fr-x-icu",
    "fr-CA-x-icu",
    "cs-x-icu",
    "hu-x-icu",
    "pl-x-icu",
    "lt-x-icu",
    "et-x-icu",
    "is-x-icu",
    "ru-x-icu",
    "uk-x-icu",
    "el-x-icu",
    "he-x-icu",
    "ar-x-icu",
    "hi-x-icu",
    "th-x-icu",
    "vi-x-icu",
    "ko-x-icu",
    "ja-x-icu",
    "zh-x-icu",
    "zh-Hant-x-icu",
    "und-x-icu",
    "phonebook",
    "traditional",
    "stroke",
    "numeric",
    "upper_first",
    "accents_apart",
    "case_apart",
    "digits_last",
    "ruled",
];

const CREATE: &str = "
    create collation phonebook (provider = icu, locale = 'de-u-co-phonebk');
    create collation traditional (provider = icu, locale = 'es-u-co-trad');
    create collation stroke (provider = icu, locale = 'zh-u-co-stroke');
    create collation numeric (provider = icu, locale = 'en-u-kn-true');
    create collation upper_first (provider = icu, locale = 'und-u-kf-upper');
    create collation accents_apart (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
    create collation case_apart (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create collation digits_last (provider = icu, locale = 'und-u-kr-latn-digit');
    create collation ruled (provider = icu, locale = 'und', rules = '&a < z <<< Z')";

/// What a server says to all of it, question by question.
fn answers(client: &mut Client) -> Vec<(String, String)> {
    client.query(CREATE).unwrap();
    let mut questions = Vec::new();
    for collation in COLLATIONS {
        // The tie-breaker makes the order total where a collation holds words for equal.
        questions.push(format!(
            "select string_agg(w, ' ' order by w collate \"{collation}\", w collate \"C\")
             from regexp_split_to_table('{WORDS}', ' +') w"
        ));
    }
    for collation in ["accents_apart", "case_apart"] {
        questions.push(format!(
            "select string_agg(same, ';' order by same collate \"C\") from
             (select string_agg(w, '=' order by w collate \"C\") same from regexp_split_to_table('{WORDS}', ' +') w
              group by w collate \"{collation}\" having count(*) > 1) groups"
        ));
    }
    for collation in [
        "en-x-icu", "de-x-icu", "tr-x-icu", "lt-x-icu", "el-x-icu", "nl-x-icu", "hy-x-icu",
    ] {
        questions.push(format!(
            "select concat_ws('|', upper(t), lower(t), initcap(t)) from (select
             ('{WORDS} ijsland IJSLAND straße ΣΊΣΥΦΟΣ Ά ΆΈ i̇ Ì o''neil don’t ǆ և') collate \"{collation}\" t) text"
        ));
    }
    questions.push("select 'Straße' ilike 'STRASSE%' collate \"de-x-icu\"".to_owned());
    questions.push("select 'RÉSUMÉ' ~* 'résumé' collate \"fr-x-icu\"".to_owned());
    questions
        .into_iter()
        .map(|question| {
            let answer = client.value(&question).unwrap();
            (question, answer)
        })
        .collect()
}

#[test]
fn languages_sort_as_in_native_postgresql() {
    let Some((_server, _created, mut client)) = harness::session() else {
        return;
    };
    let mut native = Native::create(&programs(), None).unwrap();
    native.start().unwrap();
    let mut oracle = Client::connect(&native.target()).unwrap();

    for ((question, ours), (_, theirs)) in
        answers(&mut client).into_iter().zip(answers(&mut oracle))
    {
        assert_eq!(ours, theirs, "{question}");
    }
    // Both agree, but is it the language's order?
    let order = |words: &str, collation: &str| {
        format!(
            "select string_agg(w, ' ' order by w collate \"{collation}\") from unnest('{{{words}}}'::text[]) w"
        )
    };
    for (words, collation, expected) in [
        ("z,ä,a", "de-x-icu", "a ä z"),
        ("z,ä,a", "sv-x-icu", "a z ä"),
        ("Muffe,Müller", "de-x-icu", "Muffe Müller"),
        ("Muffe,Müller", "phonebook", "Müller Muffe"),
        ("cz,ch,d", "traditional", "cz ch d"),
        ("item10,item9", "numeric", "item9 item10"),
        ("item10,item9", "en-x-icu", "item10 item9"),
    ] {
        assert_eq!(
            client.value(&order(words, collation)).unwrap(),
            expected,
            "{collation}"
        );
    }
    let count = "select count(*) > 800 from pg_collation where collprovider = 'i'";
    assert_eq!(
        client.value(count).unwrap(),
        "t",
        "initdb found ICU's locales"
    );
    // An index under such a collation is used, and finds what it should.
    client
        .query(
            "create table word (w text collate \"sv-x-icu\" primary key);
             insert into word select w || n from regexp_split_to_table('å ä ö a o z', ' ') w, generate_series(1, 200) n;
             analyze word; set enable_seqscan = off; set enable_sort = off",
        )
        .unwrap();
    let first =
        "select string_agg(w, ' ') from (select w from word where w > 'z' order by w limit 3) w";
    assert_eq!(client.value(first).unwrap(), "z1 z10 z100");
    let last = "select w from word order by w desc limit 1";
    assert_eq!(client.value(last).unwrap(), "ö99");
}

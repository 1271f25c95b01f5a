"""Texts that a tokenizer must treat with care, for tests that compare two of them."""

# One text for each rule, and some where rules meet.
HARD_TEXTS = (
    "",
    " \t\r\n\u3000\ufeff",
    "日本队夺冠，中国队第2名！",
    "\ufeff第一行\r\n\r\n第二行\r第三行\n。。结束\n",
    "制表\t符\u3000和 全角　空格",
    "。\t。\u3000。 。\x00。",
    "BERT tokenizes: unaffable, TensorFlow2.21, 3.14%",
    "ＡＢＣ１２３，．《》「」“”‘’—…",
    "Été, naïve, Ångström, Zürich, İstanbul, ĳ, ß, ẞ",
    "e\u0301te\u0301 a\u0323\u0307 \u1e69 \u0344 \u0f73",
    "ΟΔΥΣΣΕΥΣ, ΣΑΣ; ΑΣ\u00adΑ ΑΣ' Σ ΑΣ.Σ \u03a3\u0301Σ",
    "ᾂ ᾳ ῼ ΐ Ω K Å",
    "대한민국 한글 \u1112\u1161\u11ab 각",
    "豈更車 \uf900 \U0002f800 〇 ㈱ ㍿ ﬁ ½",
    "ﾊﾟﾎﾟ ガギグ か\u3099 ㌔",
    "हिन्दी বাংলা தமிழ் ไทย עִבְרִית العَرَبِيَّة",
    "\u09cb \u0b4b \u0dda \u1b44\u0301 a\u302f\u0301\u302e \u302f\u034f\u302e \U0001d160",
    "a\xadb c\u200bd e\u200df g\u2060h \x01\x7f \ufffd \ufffe",
    "one\u2028two\u2029three\x0bfour\x0cfive\x1csix\x85seven\xa0eight\u1680nine\u202f",
    "😀👍🏽 ⚽️ ★ \ue000\uf0d8 \U000f0000 \u0378",
    "Pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    "20080808080808 0x1F4A9 a1b2c3",
    "x" * 700,
    "中 a" * 700,
)

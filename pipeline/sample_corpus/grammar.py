"""The grammar of the made-up corpus: the forms that its documents are composed in, the same for every topic.

A grammar maps a symbol to alternatives separated by white space; `{symbol}` inside an alternative is replaced by one of
that symbol's alternatives, and so on down to plain text. An alternative that is written twice is chosen twice as often.

    who:     前锋 门将 {named}
    clause:  {who}{does}{what}        →  "前锋迎来关键比赛"

Every form was written for this file.
"""

# Forms that every topic uses. Weights were set by eye for variety; quotation marks come in three documents of four.
FORMS = {
    "clause": """
        {who}{does}{what} {who}{does}{what} {who}{does}{what} {who}在{scene}{does}{what} {who}在{scene}{does}{what}
        {what}{feels} {what}{feels} {what}{feels} {named}{does}{what} {named}{does}{what} {named}的{who}{feels}
        {date}{named}{does}{what} {date}{who}{does}{what} {time}{who}{does}了{what} {scene}的{what}{feels}
        {who}和{who}都{does}{what} {person}认为{what}{feels} {who}{person}{does}{what} {who}表示{what}{feels}
        {what}达到{number}{unit} {what}为{number}{unit} {named}{does}的{what}共{number}{unit}
        {what}比{before}多{number}{unit} {what}增加{percent} {percent}的{who}{does}{what} {scene}有{number}{unit}
        从{number}{unit}到{number}{unit} {link}{who}{does}{what} {link}{what}{feels} {link}{who}{feels}
        {link}{named}没有{does}{what} {link}{what}与{what}有关
        {what}和{what}{feels} 既有{what}也有{what} 为了{what}{who}{does}{what} {who}把{what}当作{what}
        {person}说：“{what}{feels}” 所谓的{what}{feels} {english}的{what}{feels} {named}({english})
    """,
    "headline_head": """
        {named}{does}{what} {named}{does}{what} {who}{does}{what} {who}{does}{what} {what}{feels} {who}{feels}
        {person}{does}{what} {number}{unit}{what} {scene}{does}{what} {percent}{who}{does}{what}
    """,
    "headline_tail": """
        {what}{feels} {what}{feels} {who}{feels} {who}{does}{what} {who}称{what}{feels} {who}{does}{what} {named}{feels}
        {what}达{number}{unit} {what}增{percent} {what}{feels} {who}{feels} {who}{does}{what} {what}与{what}
        “{what}”{feels}
    """,
    "date": """
        {month}月{day}日 {month}月{day}日 {month}月{day}日 {year}年{month}月 {year}年 {day}日 {year}-{month}-{day}
        二○{cn}{cn}年 昨天 今天 上周 本月初 去年 日前
    """,
    "time": "{hour}时{minute}分 {hour}:{minute} 上午{digit}点 晚上{digit}点 中午 凌晨 周{weekday} 星期{weekday}",
    "month": "1 2 3 4 5 6 7 8 9 10 11 12",
    "day": "{nonzero} 1{digit} 2{digit} 30",
    "year": "2005 2006 2007 2008 2009 2010 2011",
    "hour": "8 9 10 11 13 14 15 16 19 20 21 22",
    "minute": "00 15 20 30 45 {five}{digit}",
    "weekday": "一 二 三 四 五 六 日",
    "number": """
        {nonzero} {nonzero}{digit} {nonzero}{digit} {nonzero}{digit}{digit} {nonzero}{digit}{digit}{digit}
        {nonzero}.{digit} {nonzero}{digit}.{digit}{nonzero} {nonzero},{digit}{digit}{digit}
        {cn}百{cn}十 {cn}十{cn} 第{cn}
    """,
    "percent": "{nonzero}{digit}% {nonzero}.{digit}% {nonzero}{digit}.{digit}{digit}% 百分之{cn}十{cn}",
    "digit": "0 1 2 3 4 5 6 7 8 9",
    "nonzero": "1 2 3 4 5 6 7 8 9",
    "five": "0 1 2 3 4 5",
    "cn": "一 二 三 四 五 六 七 八 九",
    "before": "去年 上月 前期 预期 昨日 往年",
    "link": "不过 因此 同时 目前 据了解 另外 虽然 其实 随后 此外 如今 可以说 但是",
    "dateline": "据{place}晚报消息， 本站{date}讯： {place}消息： （记者{person}） {date}，",
    "signature": "({person}) (记者：{person}) 文/{person} （整理：{person}）",
    "person": "{surname}{given} {surname}{given}{given} {surname}{given}{given}",
    "surname": "王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 胡 朱 高 林 何 郭 马 罗",
    "given": "小 文 志 建 丽 海 明 晓 立 永 春 玉 国 红 平 佳 伟 思 雨 松 岚 秋",
    "place": "{place_head}{place_tail}",
    "place_head": "青 白 清 宁 石 云 黛 临 永 丰 望 沐 榆 桐 松 柏 岚 芦 禾 霁",
    "place_tail": "川 岭 湾 浦 原 塘 泉 溪 桥 坪 渡 屿 洲 峪",
    "title": "{title_head}之{title_tail} {title_head}{title_tail} {title_head}{title_tail}",
    "title_head": "风云 月光 山河 浮生 长夜 天涯 烈火 雪夜 青春 江湖 倾城 星辰",
    "title_tail": "传说 恋人 英雄 往事 世界 传奇 少年 物语 归来 迷城",
    "sign": "白羊 金牛 双子 巨蟹 狮子 处女 天秤 天蝎 射手 摩羯 水瓶 双鱼",
    "brand": "{latin_head}{latin_tail} {latin_head}{latin_tail} {latin_head}{latin_mid}{latin_tail}",
    "latin_head": "Vel Kor Zan Mir Tas Lum Qua Bry Fen Dor",
    "latin_mid": "a i o e",
    "latin_tail": "dex ria lon mo tek via nix so",
    "model": "{letter}{nonzero}00 {letter}{nonzero}{digit} {letter}{letter}-{nonzero}{digit}",
    "letter": "A C D G K M N S T X",
    "english": "OK VIP News Sunny Green Anna Tom Lucy Peter happy Club Best Show TOP10 DIY Hello",
}

# The page furniture that crawled pages leave at the end, not indented and the same in every category.
FURNITURE = (
    "点这里写下您的看法",
    "说说我的想法\xa0\xa0看看大家的想法",
    "把这页寄给好友&nbsp;&nbsp;存下这页",
    "字号 大 中 小  返回栏目首页",
    "更多同类文章请看专题",
)

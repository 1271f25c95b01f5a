"""The words of the made-up corpus, topic by topic: what its sentences speak of.

All topics share one set of clause and headline forms (`sample_grammar.py`), so that the shape of a sentence says
nothing about its category; what differs is the words. Each topic has its own, and fields of related topics share more
(财经, 股票 and 彩票 speak of money, 科技 and 游戏 of devices): a single word seldom settles the category, the sum of
them mostly does. Every word list was written for this file. People, places, companies and brands are put together from
syllables; one that exists is a coincidence.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """What a topic, a field of topics, or everybody talks about: alternatives separated by white space.

    Attributes:
        who: those who act.
        does: transitive verbs that go with every `what`.
        what: the things acted upon.
        feels: what can be said of a thing or a person.
        scene: where or in which context it happens, fit to follow 在.
        named: composed proper names.
        unit: what numbers count.
    """

    who: str = ""
    does: str = ""
    what: str = ""
    feels: str = ""
    scene: str = ""
    named: str = ""
    unit: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """One category of the corpus.

    Attributes:
        num_documents: how many documents THUCNews has in this category.
        neighbours: the categories whose sentences stray into this one's documents.
        words: this category's own words.
    """

    num_documents: int
    neighbours: tuple[str, ...]
    words: Words


TOPICS = {
    "体育": Topic(
        num_documents=131_603,
        neighbours=("彩票", "娱乐", "游戏"),
        words=Words(
            who="前锋 后卫 门将 主教练 替补 队长 新秀 裁判 主队 客队 射手 中锋 老将 国手 球队 双方球员",
            does="拿下 错失 争夺 逼平 打破 备战 逆转 锁定",
            what="关键进球 三分球 小组赛 联赛冠军 首发位置 篮板 点球 积分榜 决赛资格 世界纪录 金牌 转会合同 热身赛",
            feels="状态火热 防守严密 体能下降 伤病不断 连胜三场 命中率很高 拼抢凶狠 大比分领先",
            scene="主场 客场 下半场 第三节 加时赛 训练馆 新赛季 赛后",
            named="{place}队 {place}男篮 {place}女排 {place}足球俱乐部 {place}体育中心",
            unit="分 个球 个篮板 米 场 枚金牌",
        ),
    ),
    "娱乐": Topic(
        num_documents=92_632,
        neighbours=("时尚", "社会", "游戏"),
        words=Words(
            who="导演 男主角 女主角 歌手 演员 编剧 制片人 主持人 乐队 影帝 歌迷 影迷 剧组 经纪人",
            does="出演 主演 拍摄 演唱 宣传 翻拍 首播 配音",
            what="新片 电视剧 新专辑 演唱会 主题曲 票房 绯闻 首映礼 喜剧 综艺节目 电影节 预告片 爱情戏 片场花絮",
            feels="演技精湛 票房大卖 收视率走高 恋情曝光 感动落泪 台词幽默 阵容强大 嗓音动人",
            scene="片场 首映现场 舞台 银幕 剧中 颁奖典礼 录音棚 后台",
            named="《{title}》 《{title}》 电影《{title}》 {place}影业 {place}卫视",
            unit="集 场演出 张唱片 首歌 万观众 部电影",
        ),
    ),
    "家居": Topic(
        num_documents=32_586,
        neighbours=("房产", "时尚", "社会"),
        words=Words(
            who="设计师 业主 木工 装修公司 家具厂 主妇 工长 建材商 家装顾问",
            does="铺设 摆放 清洁 挑选 安装 粉刷 定制",
            what="地板 沙发 橱柜 瓷砖 壁纸 衣柜 卫浴 窗帘 吊顶 涂料 灯具 实木家具 床垫 茶几",
            feels="环保耐用 温馨舒适 色彩柔和 甲醛超标 收纳方便 质感细腻 防潮耐磨 简约大方",
            scene="客厅 卧室 厨房 阳台 卖场 样板间 建材市场 卫生间",
            named="{place}木业 {place}家居 {place}陶瓷 {brand}地板 {brand}橱柜",
            unit="平方米 套 件 毫米 块 款",
        ),
    ),
    "彩票": Topic(
        num_documents=7_588,
        neighbours=("体育", "财经", "星座"),
        words=Words(
            who="彩民 中奖者 站主 摇奖人 幸运儿 合买人 兑奖人 福彩中心 投注站",
            does="投注 守号 兑领 开出 摇出 猜中 合买 复式投注",
            what="双色球 大乐透 头奖 蓝球 红球 奖池 号码 足彩 二等奖 胜负彩 彩票 冷号 胆码 刮刮乐",
            feels="号码偏热 奖池滚存 中得大奖 遗漏多期 奇偶均衡 无人中出 和值偏大 区间断档",
            scene="投注站 开奖现场 兑奖大厅 本期 上期 奖池中 号码走势图",
            named="{place}福彩 {place}体彩 {place}{digit}{digit}{digit}号投注站",
            unit="注 期 万元奖金 倍 个红球 元",
        ),
    ),
    "房产": Topic(
        num_documents=20_050,
        neighbours=("家居", "财经", "时政"),
        words=Words(
            who="开发商 购房者 中介 房东 售楼员 业主 租客 地产商 置业顾问",
            does="开盘 认购 竞拍 出租 预售 入住 看中",
            what="楼盘 地块 户型 房价 二手房 公寓 写字楼 别墅 首付 经济适用房 小区 期房 样板间 租金",
            feels="均价上涨 成交低迷 绿化率高 地段优越 南北通透 供不应求 配套齐全 尾盘促销",
            scene="售楼处 楼市 开盘现场 城区 地铁沿线 小区里 土地市场",
            named="{place}地产 {place}花园 {place}国际公寓 {place}置业 {place}新城",
            unit="平方米 套 元每平方米 层 户 栋",
        ),
    ),
    "教育": Topic(
        num_documents=41_936,
        neighbours=("社会", "时政", "科技"),
        words=Words(
            who="考生 教师 校长 招生办 家长 毕业生 学生 研究生 班主任 阅卷老师 院校",
            does="报考 复习 录取 填报 讲授 申请 批改",
            what="高考 志愿 作文 四级考试 奖学金 英语听力 分数线 课程 考研 准考证 试卷 留学签证 公务员考试 招生计划",
            feels="题目偏难 录取率提高 基础扎实 成绩优秀 分数持平 学风良好 考点集中 词汇量大",
            scene="课堂 考场 校园 招生简章 网上报名系统 图书馆 阅卷现场",
            named="{place}大学 {place}中学 {place}师范学院 {place}实验小学 {place}考试院",
            unit="分 名考生 个专业 学时 道题 所高校",
        ),
    ),
    "时尚": Topic(
        num_documents=13_368,
        neighbours=("娱乐", "家居", "星座"),
        words=Words(
            who="模特 造型师 化妆师 名媛 潮人 发型师 女郎 美容师 买手",
            does="搭配 涂抹 试穿 护理 演绎 点缀",
            what="连衣裙 唇膏 面膜 高跟鞋 香水 手袋 眼影 卷发 外套 腰带 粉底 秋冬新品 蕾丝 防晒霜",
            feels="优雅迷人 显瘦百搭 妆容精致 肌肤水润 性感妩媚 复古风潮 轻盈飘逸 滋润保湿",
            scene="秀场 T台 时装周 专柜 派对 红毯 镜前",
            named="{brand} {brand}香水 {brand}时装 {place}时装周 {brand}专柜",
            unit="毫升 款 元 季 双 色",
        ),
    ),
    "时政": Topic(
        num_documents=63_086,
        neighbours=("社会", "教育", "财经"),
        words=Words(
            who="省长 代表 委员 外交部 发言人 总理 国务院 市委书记 干部 大使 常委会 有关部门",
            does="审议 访问 部署 出席 会见 颁布 贯彻",
            what="草案 会议 双边关系 条例 法律 议案 改革方案 工作报告 选举 外交政策 和平谈判 党风建设 民生工程",
            feels="取得共识 立场坚定 成效显著 友好合作 依法行政 稳步推进 意义重大 严肃纪律",
            scene="人民大会堂 全体会议 中南部 新闻发布会 边境 基层 两国之间",
            named="{place}省政府 {place}市委 {place}人大 {place}共和国 {place}代表团",
            unit="名代表 项议案 个省份 条 票 个国家",
        ),
    ),
    "星座": Topic(
        num_documents=3_578,
        neighbours=("时尚", "娱乐", "彩票"),
        words=Words(
            who="白羊座 金牛座 双子座 巨蟹座 狮子座 处女座 天秤座 天蝎座 射手座 摩羯座 水瓶座 双鱼座 占星师",
            does="占卜 化解 感应 暗恋 吸引",
            what="运势 桃花运 塔罗牌 血型 生肖 幸运色 爱情指数 水星逆行 星盘 贵人 姻缘 守护星 性格 财运",
            feels="桃花旺盛 敏感多情 缘分将至 贵人相助 心直口快 花心善变 运势平平 温柔体贴",
            scene="感情上 星盘中 本周运势里 单身时 月亮落入的宫位 命宫",
            named="{place}占星馆 上升{sign} 太阳{sign} 月亮{sign}",
            unit="颗星 分 岁 天 号幸运数字",
        ),
    ),
    "游戏": Topic(
        num_documents=24_373,
        neighbours=("科技", "娱乐", "体育"),
        words=Words(
            who="玩家 公会 法师 战士 运营商 美术总监 盟主 刺客 游戏团队 新手",
            does="公测 攻打 组队挑战 升级 封测 通关",
            what="网游 副本 装备 技能 坐骑 新服 怪物 职业 地图 任务 资料片 激活码 战场 帮派",
            feels="画面华丽 掉率提高 操作流畅 连击爆发 伤害惊人 等级封顶 剧情丰富 人气火爆",
            scene="服务器 副本里 城战 客户端 新手村 竞技场 论坛",
            named="《{title}》 《{title}OL》 《{title}II》 {place}游戏 {brand}网络",
            unit="级 点经验 个服务器 金币 名玩家 件装备",
        ),
    ),
    "社会": Topic(
        num_documents=50_849,
        neighbours=("时政", "教育", "娱乐"),
        words=Words(
            who="民警 嫌疑人 村民 受害者 司机 老人 邻居 医生 派出所 消防员 法院 被告人 市民 女子",
            does="报警 抢救 抢劫 逮捕 起诉 寻找 目击",
            what="车祸 命案 失踪男孩 火灾 赔偿 诈骗 现金 尸体 凶器 打架 遗嘱 监控录像 流浪狗 欠款",
            feels="当场昏迷 情绪激动 生命垂危 供认不讳 下落不明 后悔不已 无家可归 伤势稳定",
            scene="医院 派出所 案发现场 路口 村里 法庭 出租屋",
            named="{place}村 {place}派出所 {place}人民医院 {place}法院 {surname}某",
            unit="岁 名伤者 万元 人 刀 年有期徒刑",
        ),
    ),
    "科技": Topic(
        num_documents=162_929,
        neighbours=("游戏", "财经", "股票"),
        words=Words(
            who="工程师 运营商 科学家 厂商 网民 研究小组 手机厂商 程序员 电信公司 航天员",
            does="研发 预装 测试 升级 搭载 破解",
            what="手机 芯片 笔记本 搜索引擎 宽带 操作系统 触摸屏 数码相机 卫星 像素 硬盘 电池 网站 处理器",
            feels="性能强劲 性价比高 像素提升 待机时间长 机身轻薄 价格跳水 兼容性好 屏幕清晰",
            scene="实验室 互联网 机房 移动网络 卖场 太空 技术论坛",
            named="{brand} {brand}{model} {brand}{model} {place}电子 {place}软件 {place}通信",
            unit="英寸 万像素 GB MHz 元 毫安时",
        ),
    ),
    "股票": Topic(
        num_documents=154_398,
        neighbours=("财经", "科技", "房产"),
        words=Words(
            who="股民 大盘 主力 机构 券商 散户 个股 权重股 游资 操盘手",
            does="抛售 增持 减持 拉升 突破 买入 跌破",
            what="大盘 沪指 涨停板 均线 成交量 A股 年报 中小板 市盈率 限售股 重组题材 反弹行情 阻力位 港股",
            feels="高开低走 放量上涨 缩量整理 冲高回落 跌幅居前 震荡加剧 仓位较重 封住涨停",
            scene="早盘 尾盘 两市 技术面 短线 板块中 五日线附近",
            named="{place}股份 {place}证券 {place}控股 {place}重工 {place}药业",
            unit="点 元 万股 手 个涨停 亿元",
        ),
    ),
    "财经": Topic(
        num_documents=37_098,
        neighbours=("股票", "时政", "房产"),
        words=Words(
            who="央行 经济学家 银行 出口商 基金经理 储户 保险公司 财政部 企业主 理财师",
            does="上调 发行 贷出 抑制 监管 收购",
            what="利率 通胀 外汇 贷款 存款准备金 国债 基金 黄金 原油 税收 保险 出口 人民币汇率 信用卡",
            feels="需求回升 流动性充裕 利润下滑 通胀抬头 收益稳健 赤字扩大 信贷宽松 油价回落",
            scene="国际市场 金融危机 宏观调控 银行柜台 二季度 外贸领域 货币政策",
            named="{place}银行 {place}基金 {place}保险 {place}集团 {place}信托",
            unit="个基点 亿元 亿美元 万吨 个百分点 美元",
        ),
    ),
}

# Fields of related topics: these words belong to all of them alike.
SHARED_WORDS = (
    (
        ("财经", "股票", "彩票", "房产"),
        Words(
            who="分析师 投资者 资金 业内人士 买家",
            does="看好 投资 持有 出售",
            what="市场 价格 资金 收益 走势 行情 成本 风险 涨幅",
            feels="涨幅明显 风险加大 走势平稳 成交活跃 资金流入",
            scene="市场上 交易中 上半年",
            unit="亿元 万元 个百分点",
        ),
    ),
    (
        ("财经", "股票"),
        Words(
            who="上市公司 基金公司 监管层 大股东",
            does="披露 融资 重仓",
            what="业绩 利润 债券 新股 股权 分红 银行股 加息预期",
            feels="业绩预增 估值偏低 资金紧张 业绩下滑",
            scene="资本市场 一季度",
            named="{place}证券 {place}实业",
        ),
    ),
    (
        ("科技", "游戏"),
        Words(
            who="开发商 用户 网友 开发团队",
            does="下载 安装 更新 优化",
            what="软件 版本 网络 显卡 账号 补丁 界面 平台",
            feels="运行稳定 画质出色 功能强大 漏洞较多",
            scene="网上 官网 新版本 测试阶段",
            named="{brand}科技 {brand}互动",
        ),
    ),
    (
        ("时政", "社会", "教育"),
        Words(
            who="有关部门 市民 政府 教育局 志愿者 农民工",
            does="调查 通报 整治 救助",
            what="规定 事故 补贴 治安 医疗 户籍 通知 举报信",
            feels="责任明确 秩序良好 引发争议 处理及时",
            scene="当地 社区 农村 听证会",
            named="{place}市政府 {place}公安局 {place}教育局",
        ),
    ),
    (
        ("娱乐", "时尚", "星座"),
        Words(
            who="明星 女星 女生 偶像 粉丝",
            does="展示 迷恋 约会",
            what="造型 礼服 恋情 婚礼 魅力 约会 写真",
            feels="魅力十足 甜蜜浪漫 气质高雅 光彩照人",
            scene="镜头前 聚会上 恋爱中",
        ),
    ),
    (
        ("家居", "房产", "时尚"),
        Words(
            who="消费者 品牌商 都市白领",
            does="选购 打造 装饰",
            what="风格 空间 色彩 品牌 面料 精装修 材质",
            feels="格调高雅 色调明快 做工考究 价格实惠",
            scene="商场 展会 生活里",
        ),
    ),
    (
        ("体育", "彩票", "游戏"),
        Words(
            who="选手 冠军队 对手 球迷",
            does="战胜 预测 挑战",
            what="比赛 比分 胜负 冠军 对手 赛程 主客场",
            feels="胜算较大 实力接近 排名上升 爆出冷门",
            scene="比赛中 赛场 本轮",
            unit="分 场 比零",
        ),
    ),
)

# What any document may say.
GENERAL_WORDS = Words(
    who="大家 许多人 负责人 记者 读者 朋友 专家 不少人 工作人员 年轻人 当地居民 组织者 有人 他们 我们",
    does="关注 了解 讨论 带来 介绍 发现 准备 改变 面对 收到 提到 寻找 重视",
    what="消息 情况 变化 机会 问题 办法 活动 经验 原因 结果 时间 计划 内容 意见 过程 想法 压力 生活 细节 照片",
    feels="值得期待 相当不错 并不简单 十分明显 令人意外 还要等等看 越来越好 不太顺利 说法不一 有待观察 很有意思",
    scene="今年 近日 现场 一些地方 采访中 这段时间 电话里 过去几年 会上 网上 城市里",
    named="{place}市 {place}县 {place}晚报 {place}协会 {person} {person} {english}",
    unit="个 次 人 天 种 倍 元 %",
)

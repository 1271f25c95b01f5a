"""The first pass: labels, splits and rejections of documents, and the plan that follows from all of them."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.documents import Locator, Rejection, normalize_text
from pipeline.corpus.options import InputSpec
from pipeline.dataset.shards import Placement, place
from pipeline.errors import InputFormatError, OptionError, TooManyRejectedError
from pipeline.job.job import Job
from pipeline.job.preprocess import prepare
from pipeline.job.references import Reference, ReferenceBatch, Survey, plan_dataset, require_few_rejected
from tests.support.corpora import first_pass, made_up_documents, make_config, write_lines, write_tree


def read(job: Job) -> tuple[dict[str, tuple[str, Reference]], dict[str, Rejection]]:
    """Return key → (split, reference) and key → rejection."""
    references: dict[str, tuple[str, Reference]] = {}
    rejections: dict[str, Rejection] = {}
    for batch in first_pass(job):
        assert batch.num_documents == sum(map(len, batch.by_split.values())) + len(batch.rejections)
        for split, found in batch.by_split.items():
            references |= {reference.key: (split, reference) for reference in found}
        rejections |= {rejection.key: rejection for rejection in batch.rejections}
    return references, rejections


def table_job(tmp_path: Path, lines: list[str], **changes: Any) -> Job:
    path = write_lines(tmp_path / "t.tsv", lines)
    return prepare(make_config(tmp_path, path, **changes))


def test_a_reference_says_where_a_document_goes(tmp_path: Path) -> None:
    documents = made_up_documents(40)
    config = make_config(tmp_path, write_tree(tmp_path / "tree", documents), seed=3)
    references, rejections = read(prepare(config))
    assert not rejections
    assert set(references) == set(documents)
    for key, (split, reference) in references.items():
        placement = place(normalize_text(documents[key]), 3)
        assert reference.digest == placement.digest
        assert split == placement.split(config.split_weights)
        assert reference.category == key.split("/")[0]
        assert reference.second == {"体育": "生活娱乐", "科技": "公共事务", "股票": "经济金融"}[reference.category]
    assert {split for split, _ in references.values()} == {"train", "dev", "test"}


def test_pinned_splits_stay_as_they_are(tmp_path: Path) -> None:
    tables = {split: write_lines(tmp_path / f"{split}.tsv", ["山水\t体育", "风云\t科技"]) for split in ("dev", "extra")}
    job = prepare(make_config(tmp_path, *(InputSpec(str(path), split) for split, path in tables.items())))
    references, _ = read(job)
    assert {key: split for key, (split, _) in references.items()} == {
        "dev.tsv:1": "dev",
        "dev.tsv:2": "dev",
        "extra.tsv:1": "extra",
        "extra.tsv:2": "extra",
    }


@pytest.mark.parametrize(
    ("splits", "weights", "names"),
    [
        ([None], [("dev", 0.1), ("train", 0.8), ("test", 0.1)], ("train", "dev", "test")),
        ([None], [("train", 1.0), ("dev", 0.0)], ("train",)),  # a share of nothing makes no split
        ([None], [("b", 0.5), ("a", 0.5)], ("b", "a")),  # names of one's own stay as they were given
        (["dev", "train"], None, ("train", "dev")),  # no input is left to be divided
        (["extra", None], [("train", 0.8), ("test", 0.2)], ("train", "test", "extra")),
    ],
)
def test_split_names(
    tmp_path: Path,
    splits: list[str | None],
    weights: list[tuple[str, float]] | None,
    names: tuple[str, ...],
) -> None:
    specs = [
        InputSpec(str(write_lines(tmp_path / f"{index}.tsv", ["山\t体育"])), split)
        for index, split in enumerate(splits)
    ]
    changes = {"split_weights": tuple(weights)} if weights else {}
    assert prepare(make_config(tmp_path, *specs, **changes)).split_names == names


def test_labels_that_look_the_same_are_one(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    documents = {"café/1.txt": "一山", f"{decomposed}/2.txt": "二山", " café /3.txt": "三山"}
    job = prepare(make_config(tmp_path, write_tree(tmp_path / "tree", documents), second_label="random"))
    references, _ = read(job)
    assert len(references) == 3
    assert {reference.category for _, reference in references.values()} == {"café"}


def test_invisible_characters_do_not_tell_labels_apart(tmp_path: Path) -> None:
    """What was joined is counted; the two characters that join letters mean something inside a name."""
    odd = ["\ufeff体育", "体\u200b育", "体育\u00ad", "\u200e体育\u3000", "体育\u200d"]
    lines = [f"{number}山\t{label}" for number, label in enumerate(["体育", *odd, "नमस्\u200dते", " 科技\xa0"])]
    batches = first_pass(table_job(tmp_path, lines, second_label="random"))
    labels = {reference.category for batch in batches for refs in batch.by_split.values() for reference in refs}
    assert labels == {"体育", "科技", "नमस्\u200dते"}
    assert survey_of(batches).notes == {"labels with invisible characters, read as '体育'": len(odd)}


def test_a_label_with_a_line_end_is_rejected(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.csv", ['山,"体\n育"', '水,"体\t育"', '云,"体育\n"'])
    references, rejections = read(prepare(make_config(tmp_path, path)))
    assert set(references) == {"t.csv:4"}
    assert {rejection.reason for rejection in rejections.values()} == {"bad_label"}


def test_a_corpus_whose_categories_are_no_classes_is_refused(tmp_path: Path) -> None:
    lines = [f"山水{number}\t第{number}条新闻{'很长' * 300}" for number in range(30)]
    job = table_job(tmp_path, lines, second_label="random")
    with pytest.raises(
        InputFormatError, match=r"30 of 30 categories occur once, such as .*… .*check --columns"
    ) as caught:
        plan_dataset(survey_of(first_pass(job)), job)
    assert len(str(caught.value)) < 400, "names are cut"
    job = table_job(tmp_path, ["山\t体育", "水\t体育"])
    with pytest.raises(InputFormatError, match="all 2 documents have the category '体育'"):
        plan_dataset(survey_of(first_pass(job)), job)
    names = write_lines(tmp_path / "class.txt", ["体育", "科技"])
    job = table_job(tmp_path, ["山\t0.0", "水\t体育"], category_names_path=str(names))
    assert plan_dataset(survey_of(first_pass(job)), job).labels["category"].names == ("体育", "科技")
    few = table_job(tmp_path, [f"山{number}\t类{number}" for number in range(9)], second_label="random")
    plan_dataset(survey_of(first_pass(few)), few)


def test_labels_with_slashes_and_spaces(tmp_path: Path) -> None:
    lines = ["山\t辞/离职\t组织 关系", "水\t ../.. \t/"]
    references, _ = read(table_job(tmp_path, lines, columns="text,category,second", second_label="column"))
    labels = {(reference.category, reference.second) for _, reference in references.values()}
    assert labels == {("辞/离职", "组织 关系"), ("../..", "/")}


def test_class_indices_become_names(tmp_path: Path) -> None:
    names = write_lines(tmp_path / "class.txt", ["财经", "体育", "3"])
    lines = [
        "一\t0",
        "二\t体育",
        "三\t01",
        "四\t3",
        "五\t4",
        "六\t-1",
        "七\t天气",
        "八\t",
        f"九\t{'9' * 5000}",
        "十\t²",
    ]
    job = table_job(tmp_path, lines, category_names_path=str(names), second_label="random")
    references, rejections = read(job)
    assert {key: reference.category for key, (_, reference) in references.items()} == {
        "t.tsv:1": "财经",
        "t.tsv:2": "体育",
        "t.tsv:3": "体育",
        "t.tsv:4": "3",  # a name goes before an index
    }
    assert {key: rejection.reason for key, rejection in rejections.items()} == {
        "t.tsv:5": "unknown_category",
        "t.tsv:6": "unknown_category",
        "t.tsv:7": "unknown_category",
        "t.tsv:8": "no_category",
        "t.tsv:9": "unknown_category",
        "t.tsv:10": "unknown_category",  # a digit to Unicode, but to no one who numbers classes
    }


def test_random_second_labels_are_a_function_of_text_and_seed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", made_up_documents(60))
    draws = []
    for seed, num_labels in [(0, 3), (0, 3), (1, 3), (0, 5)]:
        config = make_config(tmp_path, tree, second_label="random", seed=seed, num_random_labels=num_labels)
        references, _ = read(prepare(config))
        draws.append({key: reference.second for key, (_, reference) in references.items()})
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0].values()) == {"0", "1", "2"}
    assert set(draws[3].values()) == {"0", "1", "2", "3", "4"}


def test_a_category_without_a_parent_stops_the_job(tmp_path: Path) -> None:
    job = prepare(make_config(tmp_path, write_tree(tmp_path / "tree", {"天气/1.txt": "山", "体育/1.txt": "水"})))
    with pytest.raises(OptionError, match="category '天气' has no parent"):
        first_pass(job)


def test_taxonomy_of_ones_own(tmp_path: Path) -> None:
    taxonomy = write_lines(tmp_path / "taxonomy.tsv", ["天气\t自然", "café\tfood"])
    tree = write_tree(tmp_path / "tree", {"天气/1.txt": "山", "cafe\u0301/1.txt": "水"})
    references, _ = read(prepare(make_config(tmp_path, tree, taxonomy_path=str(taxonomy))))
    assert {reference.second for _, reference in references.values()} == {"自然", "food"}


def test_unusable_documents_are_rejected_with_a_reason(tmp_path: Path) -> None:
    lines = ["山\t体育\t大", "水\t体育\t ", "云\t\t大", "\u3000\t体育\t大", "山水"]
    job = table_job(tmp_path, lines, columns="text,category,second", second_label="column")
    references, rejections = read(job)
    assert list(references) == ["t.tsv:1"]
    assert {key: rejection.reason for key, rejection in rejections.items()} == {
        "t.tsv:2": "no_second_label",
        "t.tsv:3": "no_category",
        "t.tsv:4": "empty",
        "t.tsv:5": "bad_line",
    }


REFERENCES = st.builds(
    Reference,
    st.binary(min_size=32, max_size=32),
    st.text(max_size=5),
    st.sampled_from("abc"),
    st.sampled_from("xy"),
    st.just(Locator("file", b"/x")),
)
BATCHES = st.builds(
    ReferenceBatch,
    st.dictionaries(st.sampled_from(["train", "dev"]), st.lists(REFERENCES, max_size=3)),
    st.lists(st.builds(Rejection, st.text(max_size=3), st.just("empty"), st.just("")), max_size=4),
)


def survey_of(batches: list[ReferenceBatch]) -> Survey:
    survey = Survey()
    for batch in batches:
        survey.add(batch)
    return survey


@given(st.lists(BATCHES, max_size=6), st.data())
def test_surveys_can_be_merged_in_any_order(batches: list[ReferenceBatch], data: st.DataObject) -> None:
    merged = Survey()
    for part in data.draw(st.permutations([batches[0::3], batches[1::3], batches[2::3]])):
        merged.merge(survey_of(data.draw(st.permutations(part))))
    whole = survey_of(batches)
    assert merged.num_documents == whole.num_documents
    assert (merged.labels, merged.num_rejected) == (whole.labels, whole.num_rejected)
    assert merged.rejections == whole.rejections == sorted(r for batch in batches for r in batch.rejections)[:3]


def batch_of(num_documents: int, *, num_rejected: int = 0, split: str = "train") -> ReferenceBatch:
    reference = Reference(bytes(32), "k", "体育", "生活娱乐", Locator("file", b"/x"))
    other = reference._replace(category="科技", second="公共事务")
    return ReferenceBatch(
        {split: [other, *[reference] * num_documents][:num_documents]},
        [Rejection(f"r{i}", "empty", "") for i in range(num_rejected)],
    )


def test_plan(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"体育/1.txt": "山", "科技/1.txt": "水"})
    job = prepare(make_config(tmp_path, tree))
    plan = plan_dataset(survey_of([batch_of(2_000), batch_of(3, split="dev")]), job)
    assert plan.num_shards == {"train": 4, "dev": 1, "test": 1}
    assert list(plan.num_shards) == ["train", "dev", "test"]
    assert plan.labels["category"].names == ("体育", "科技")
    assert plan.labels["second"].names == ("公共事务", "生活娱乐")
    long = prepare(make_config(tmp_path, tree, max_len=65_535))
    plan = plan_dataset(survey_of([batch_of(2_000), batch_of(300, split="dev")]), long)
    assert plan.num_shards == {"train": 8, "dev": 2, "test": 1}, "256 of the longest examples fill a shard"
    names = write_lines(tmp_path / "class.txt", ["财经", "体育"])
    config = make_config(tmp_path, tree, num_shards=7, second_label="random", category_names_path=str(names))
    plan = plan_dataset(survey_of([batch_of(1)]), prepare(config))
    assert plan.num_shards == {"train": 7, "dev": 7, "test": 7}
    # Given names keep their ids, in use or not; random labels are all there, drawn or not.
    assert plan.labels["category"].names == ("财经", "体育")
    assert plan.labels["second"].names == ("0", "1", "2")


def test_too_many_rejected_documents_stop_the_job(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"体育/1.txt": "山", "科技/1.txt": "水"})
    job = prepare(make_config(tmp_path, tree, max_rejected_fraction=0.1))
    plan_dataset(survey_of([batch_of(9, num_rejected=1)]), job)  # exactly as many as allowed
    with pytest.raises(TooManyRejectedError) as caught:
        plan_dataset(survey_of([batch_of(8, num_rejected=1)]), job)
    message = str(caught.value)
    assert message.startswith("1 of 9 documents rejected (11.1%), at most 10.0% allowed: r0 (empty: )")
    assert message.endswith("correct them, or raise --max_rejected_fraction")
    everything = prepare(make_config(tmp_path, tree, max_rejected_fraction=1.0))
    with pytest.raises(InputFormatError, match=f"no usable document in {tree}"):
        plan_dataset(survey_of([batch_of(0, num_rejected=5)]), everything)
    with pytest.raises(InputFormatError, match="no usable document"):
        plan_dataset(survey_of([]), everything)


def test_a_single_rejection_is_told_in_full_and_many_by_example(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path, max_rejected_fraction=0.0)
    rejections = [Rejection(f"体育/{i}.txt", "not_utf-8", "byte 0xff at position 0") for i in range(5)]
    with pytest.raises(
        TooManyRejectedError,
        match=r"体育/2\.txt \(not_utf-8: byte 0xff at position 0\); is it GBK\? say --encoding",
    ) as caught:
        require_few_rejected(rejections, num_rejected=5, num_read=5, config=config)
    assert "体育/3.txt" not in str(caught.value)


def test_equal_texts_share_a_digest_whatever_their_layout(tmp_path: Path) -> None:
    documents = {"体育/1.txt": "山\n\u3000\u3000水\n", "科技/2.txt": "\ufeff山\r\n\t水", "股票/3.txt": "山。水"}
    references, _ = read(prepare(make_config(tmp_path, write_tree(tmp_path / "tree", documents))))
    digests = {reference.digest for _, reference in references.values()}
    assert digests == {place("山。水", 0).digest}
    assert len({split for split, _ in references.values()}) == 1
    assert Placement(digests.pop()).shard(1) == 0

"""Alignment files: both bases, what is refused with its line, and a base that is never guessed in silence (F69)."""

from __future__ import annotations

import warnings

import pytest

from regard import ArgumentError, DataError
from regard.explain import gold_of, read_pharaoh, score_alignments, write_pharaoh


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "gold.align"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_sure_and_possible_links(file):
    first, second, third = read_pharaoh(file("0-0 1p2 2-1\n\n1-1\n"), base=0)
    assert first.sure == {(0, 0), (2, 1)}
    assert first.possible == {(0, 0), (1, 2), (2, 1)}
    assert second.possible == frozenset()
    assert third.sure == {(1, 1)}


def test_base_1_counts_from_1(file):
    assert read_pharaoh(file("1-1 2-3\n"), base=1)[0].sure == {(0, 0), (1, 2)}


def test_flipped_files_have_the_target_first(file):
    assert read_pharaoh(file("0-3 1p2\n"), base=0, flipped=True)[0].possible == {(3, 0), (2, 1)}


@pytest.mark.parametrize("base", [0, 1])
def test_what_is_written_is_read(tmp_path, base):
    alignments = [{(0, 0), (10, 2), (2, 1)}, set(), {(1, 1)}]
    write_pharaoh(tmp_path / "out", alignments, base=base)
    assert [set(line.sure) for line in read_pharaoh(tmp_path / "out", base=base)] == alignments
    written = (tmp_path / "out").read_text(encoding="utf-8")
    assert written == ("0-0 2-1 10-2\n\n1-1\n" if base == 0 else "1-1 3-2 11-3\n\n2-2\n")


def test_gold_of_a_file_scores(file):
    gold = gold_of(read_pharaoh(file("1-1 2p2\n"), base=1), [(2, 2)])
    assert score_alignments([{(0, 0), (1, 1)}], gold).aer == 0.0


@pytest.mark.parametrize("word", ["0:1", "-1-0", "0-", "a-b", "0-1-2", "0.5-1", "٠-١"])
def test_a_line_that_is_no_alignment_is_named(file, word):
    with pytest.raises(DataError, match=r"line 2: expected links such as 0-1 or 0p1, got"):
        read_pharaoh(file(f"0-0\n0-1 {word}\n"), base=0)


def test_F69_a_1_based_file_read_from_0_is_told_so(file):
    with pytest.raises(DataError, match=r"line 1: link 2-2 .*2 and 2 words. Does it count from 1\?"):
        read_pharaoh(file("1-1 2-2\n"), base=0, lengths=[(2, 2)])


def test_F69_a_1_based_file_without_lengths_is_doubted(file):
    text = "1-1 2-2 3-3\n" * 30
    with pytest.warns(UserWarning, match="in 30 lines no link touches a first word"):
        read_pharaoh(file(text), base=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_pharaoh(file(text), base=1)
        read_pharaoh(file(text + "0-0\n"), base=0)


def test_F69_a_0_in_a_1_based_file_is_refused(file):
    with pytest.raises(DataError, match="line 2: a word 0 in a file that counts from 1"):
        read_pharaoh(file("1-1\n0-1\n"), base=1)


def test_F69_another_number_of_lines_is_refused(file):
    with pytest.raises(DataError, match="expected 3 lines, one for each pair of sentences, got 2"):
        read_pharaoh(file("0-0\n0-0\n"), base=0, lengths=[(1, 1)] * 3)


@pytest.mark.parametrize("link", ["1-4", "4-1"])
def test_F69_a_link_beyond_the_sentence_is_refused(file, link):
    with pytest.raises(DataError, match=rf"line 1: link {link} .* have 3 and 3 words. Is it another tokenisation"):
        read_pharaoh(file(f"{link}\n"), base=1, lengths=[(3, 3)])


def test_F69_detection_warns_of_what_it_found(file):
    with pytest.warns(UserWarning, match="counts words from 0, by its links. Say base=0"):
        assert read_pharaoh(file("1-1\n0-2\n"), base="detect")[1].sure == {(0, 2)}
    with pytest.warns(UserWarning, match="counts words from 1"):
        assert read_pharaoh(file("1-1\n2-3\n"), base="detect", lengths=[(2, 2), (2, 3)])[1].sure == {(1, 2)}


def test_F69_detection_does_not_guess(file):
    with pytest.raises(DataError, match=r"neither a word 0 nor one beyond the last\. Say base=0 or base=1"):
        read_pharaoh(file("1-1\n"), base="detect", lengths=[(3, 3)])
    with pytest.raises(DataError, match="both a word 0 and one beyond the last"):
        read_pharaoh(file("0-1 2-2\n"), base="detect", lengths=[(2, 3)])
    with pytest.raises(DataError, match="cannot be detected"):
        read_pharaoh(file("1-1\n"), base="detect")


def test_the_base_has_no_default(file):
    with pytest.raises(TypeError, match="base"):
        read_pharaoh(file("0-0\n"))
    with pytest.raises(ArgumentError, match="base: expected 0, 1 or 'detect'"):
        read_pharaoh(file("0-0\n"), base=2)
    with pytest.raises(ArgumentError, match="base: expected 0 or 1"):
        write_pharaoh("nowhere", [], base="detect")

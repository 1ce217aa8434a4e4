from loopline.lib.waiting import until


def test_the_first_true_answer_is_returned():
    answers = iter([0, "", 7, 8])
    assert until(lambda: next(answers), 60, every=0.0) == 7


def test_after_the_time_limit_the_last_of_at_least_one_answer_is_returned():
    calls = []
    assert until(lambda: calls.append(1), 0.0) is None
    assert calls == [1]

from loopline.lib.waiting import until


def test_the_first_true_answer_comes_back():
    answers = iter([0, "", 7, 8])
    assert until(lambda: next(answers), 60, every=0.0) == 7


def test_when_the_time_is_over_the_last_answer_comes_back_and_it_is_asked_at_least_once():
    asked = []
    assert until(lambda: asked.append(1), 0.0) is None
    assert asked == [1]

"""The page of `medx report` in a real browser: whole without network, drawn, and usable with a mouse and on a phone."""

import pytest

FIGURES = "Bokeh.documents[0].roots().length"

DRAWN = """id => {
    const {roots} = JSON.parse(document.getElementById("figures").textContent).items[0];
    const view = Bokeh.index.get_by_id(Object.keys(roots).find(root => roots[root] == id));
    const canvas = view.export("png", true).canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const [red, green, blue] = [1, 3, 5].map(at => parseInt("%s".slice(at, at + 2), 16));
    let found = 0;
    for (let at = 0; at < pixels.length; at += 4)
        found += Math.abs(pixels[at] - red) + Math.abs(pixels[at + 1] - green) + Math.abs(pixels[at + 2] - blue) < 30;
    return found;
}"""
"""Pixels of about one color in a figure."""


def test_it_is_whole_without_network_and_without_complaints(page, page_file):
    assert [url for url in page.asked if not url.startswith(("data:", "blob:"))] == [page_file.as_uri()]
    assert page.complained == []


def test_text_of_the_run_does_nothing(page):
    assert page.title() == "child: interrupted, step 60"
    assert page.evaluate("document.querySelectorAll('main script, b.bold, img:not([src^=data])').length") == 0


def test_every_figure_is_drawn_where_it_belongs(page):
    assert page.evaluate(FIGURES) == page.locator(".curve").count() > 12
    sizes = page.evaluate(
        "[...document.querySelectorAll('.curve')].map(e => [e.clientWidth, e.firstElementChild?.offsetHeight])"
    )
    assert all(width > 300 and height > 200 for width, height in sizes)


@pytest.mark.parametrize(
    ("figure", "color"),
    [
        ("curve-loss", "#2f7ed8"),
        ("curve-loss", "#239b74"),
        ("curve-gradient-norm", "#c2508f"),
        ("curve-accuracy", "#e0762f"),
        ("curve-ranks", "#fde724"),
        ("curve-timeline", "#d0504d"),
    ],
)
def test_curves_have_pixels_of_their_colors(page, figure, color):
    assert page.evaluate(DRAWN % color, figure) > 30


def test_a_pointer_on_a_curve_tells_its_number(opened):
    page = opened()
    place = page.locator("#curve-loss")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 130)
    page.wait_for_timeout(300)
    assert page.get_by_text("nats/token, step").first.is_visible()


def test_a_click_in_the_legend_hides_a_curve(opened):
    page = opened()
    visible = "Bokeh.documents[0].roots()[0].renderers.map(renderer => renderer.visible)"
    assert all(page.evaluate(visible))
    page.locator("#curve-loss").get_by_text("loss", exact=True).first.click()
    page.wait_for_timeout(200)
    assert page.evaluate(visible).count(False) == 1


def test_curves_are_zoomed_together(opened):
    page = opened()
    page.evaluate("Bokeh.documents[0].roots()[0].x_range.end = 30")
    assert page.evaluate("Bokeh.documents[0].roots().filter(plot => plot.x_range.end == 30).length") > 10


def test_a_click_on_a_question_mark_defines_the_number(opened):
    page = opened()
    definition = page.locator("#what-validation-bits-per-byte")
    assert not definition.is_visible()
    page.locator("button[popovertarget=what-validation-bits-per-byte]").first.click()
    assert definition.is_visible() and "UTF-8 bytes" in definition.inner_text()
    page.keyboard.press("Escape")
    assert not definition.is_visible()


@pytest.mark.parametrize("width_px", [400, 700, 1280])
def test_the_page_never_scrolls_sideways(opened, width_px):
    page = opened(width_px)
    for summary in page.locator("summary").all():
        summary.click()
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == width_px


def test_a_finger_scrolls_where_it_begins_on_a_curve(opened):
    page = opened(400, has_touch=True, is_mobile=True)
    page.wait_for_function("Bokeh.documents[0].roots().every(plot => plot.toolbar.gestures.pan.active == null)")


def test_it_is_dark_where_the_reader_is(opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(color_scheme=scheme).evaluate(ground) for scheme in ("light", "dark"))
    assert light == "rgb(244, 246, 248)" and dark == "rgb(18, 23, 29)"

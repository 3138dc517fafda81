"""Images of other programs on the page, and the API documentation."""

from __future__ import annotations

import openai
from playwright.sync_api import Page, Route, expect

from canvas import Studio

FAST = {"num_inference_steps": 1}


def test_images_of_other_programs_appear_on_the_page(page: Page, served: Studio) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)
    client.images.generate(prompt="a parrot on a program", extra_body=FAST)
    page.get_by_role("button", name="Show: a parrot on a program").wait_for()
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_role("button", name="Open: a parrot on a program").wait_for()
    client.images.generate(prompt="a second parrot", extra_body=FAST)
    page.get_by_role("button", name="Open: a second parrot").click()
    opened = page.get_by_role("dialog")
    expect(opened).to_contain_text("OpenAI API")
    client.images.generate(prompt="a third parrot", extra_body=FAST)
    page.locator('.tile[title="a third parrot"]').wait_for(state="attached")
    expect(opened).to_contain_text("a second parrot")


def test_the_api_docs_load_nothing_from_other_hosts(page: Page, served: Studio) -> None:
    other_hosts: list[str] = []

    def block_other_hosts(route: Route) -> None:
        if route.request.url.startswith((f"{served.url}/", "data:")):
            route.continue_()
        else:
            other_hosts.append(route.request.url)
            route.abort()

    page.route("**/*", block_other_hosts)
    page.goto(f"{served.url}/docs")
    page.locator(".opblock").first.wait_for()
    for path in ("/v1/images/generations", "/sdapi/v1/txt2img", "/healthz", "/metrics"):
        expect(page.locator(f'.opblock [data-path="{path}"]')).to_have_count(1)
    assert other_hosts == []

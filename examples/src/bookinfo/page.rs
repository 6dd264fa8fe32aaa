// SPDX-License-Identifier: Apache-2.0

//! The HTML of the product page. Pure: values in, text out, everything escaped.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// The title that tests and people know the page by.
const TITLE: &str = "Simple Bookstore App";

/// The most stars a review shows.
const MAX_STARS: u64 = 5;

/// The style sheet, served under `/static/style.css`.
pub const STYLE: &str = "\
:root { color-scheme: light; font-family: system-ui, sans-serif; }
body { margin: 0; color: #1d2733; background: #f5f6f8; }
header { display: flex; justify-content: space-between; align-items: center;
  padding: .8rem 2rem; background: #16324f; color: #fff; }
header form { display: flex; gap: .5rem; align-items: center; margin: 0; }
header a, header button { color: #fff; background: none; border: 1px solid #fff;
  border-radius: .3rem; padding: .3rem .8rem; font: inherit; text-decoration: none; }
header input { font: inherit; padding: .3rem; border: 0; border-radius: .3rem; width: 9rem; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 2rem 3rem; }
h1 { margin: 1.2rem 0 .4rem; } .lead { color: #4a5868; max-width: 45rem; }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: .5rem;
  padding: .5rem 1.5rem 1.2rem; margin-top: 1.2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1.5rem .3rem 0;
  border-bottom: 1px solid #eceff2; } th { font-weight: 600; color: #4a5868; }
blockquote { margin: .8rem 0; } blockquote p { margin: 0 0 .3rem; }
cite { color: #4a5868; font-style: normal; } .stars svg { width: 1.2rem; height: 1.2rem; }
.error { color: #9c2f1d; } .served { color: #4a5868; font-size: .9rem; }
";

/// The one product of the shop.
pub fn product() -> Value {
    json!({
        "id": 0,
        "title": "The Comedy of Errors",
        "descriptionHtml": "One of Shakespeare's early plays and his shortest: two pairs of twins, \
            separated at birth, meet in one city, and nobody knows who is who.",
    })
}

/// The index page.
pub fn index() -> String {
    let body = "<h1>Hello! This is a simple bookstore application</h1>\
        <p class=\"lead\">It consists of four services: the page that you see, and details, reviews \
        and ratings behind it.</p>\
        <p><a href=\"/productpage\">To the product page</a></p>";
    document(None, body)
}

/// The product page, from the answers of details and reviews, or the sentences that
/// stand in their place.
pub fn product_page(
    user: Option<&str>,
    details: &Result<Value, String>,
    reviews: &Result<Value, String>,
) -> String {
    let product = product();
    let mut body = String::new();
    push(&mut body, "<h1>", text_of(&product, "title"), "</h1>");
    push(&mut body, "<p class=\"lead\">", text_of(&product, "descriptionHtml"), "</p>");
    body.push_str("<section id=\"details\"><h2>Book Details</h2>");
    match details {
        Ok(details) => details_table(&mut body, details),
        Err(error) => error_text(&mut body, "product details", error),
    }
    body.push_str("</section><section id=\"reviews\"><h2>Book Reviews</h2>");
    match reviews {
        Ok(reviews) => reviews_list(&mut body, reviews),
        Err(error) => error_text(&mut body, "product reviews", error),
    }
    body.push_str("</section>");
    document(user, &body)
}

fn document(user: Option<&str>, body: &str) -> String {
    let session = match user {
        Some(user) => {
            format!("<span>{}</span><a href=\"/logout\">Sign out</a>", escaped(user))
        }
        None => "<label for=\"username\">User</label>\
            <input id=\"username\" name=\"username\" autocomplete=\"username\" required>\
            <button type=\"submit\">Sign in</button>"
            .to_owned(),
    };
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{TITLE}</title><link rel=\"stylesheet\" href=\"/static/style.css\"></head>\
         <body><header><strong>BookInfo Sample</strong>\
         <form method=\"post\" action=\"/login\">{session}</form></header>\
         <main>{body}</main></body></html>\n"
    )
}

fn details_table(body: &mut String, details: &Value) {
    const ROWS: [(&str, &str); 8] = [
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
        ("Publisher", "publisher"),
        ("Author", "author"),
        ("Year", "year"),
        ("Pages", "pages"),
        ("Type", "type"),
        ("Language", "language"),
    ];
    body.push_str("<table>");
    for (label, field) in ROWS {
        push(body, "<tr><th>", label, "</th>");
        push(body, "<td>", text_of(details, field), "</td></tr>");
    }
    body.push_str("</table>");
}

fn reviews_list(body: &mut String, reviews: &Value) {
    for review in reviews.get("reviews").and_then(Value::as_array).into_iter().flatten() {
        push(body, "<blockquote><p>", text_of(review, "text"), "</p>");
        push(body, "<cite>", text_of(review, "reviewer"), "</cite>");
        if let Some(rating) = review.get("rating") {
            rating_stars(body, rating);
        }
        body.push_str("</blockquote>");
    }
    let served = format!("{}({})", text_of(reviews, "podname"), text_of(reviews, "clustername"));
    push(body, "<p class=\"served\">Reviews served by: <code>", served, "</code></p>");
}

fn rating_stars(body: &mut String, rating: &Value) {
    let Some(stars) = rating.get("stars").and_then(Value::as_u64) else {
        push(body, "<p class=\"error\">", text_of(rating, "error"), "</p>");
        return;
    };
    let color = if text_of(rating, "color") == "red" { "#c5221f" } else { "#000000" };
    // Writing to a String cannot fail.
    let _infallible = write!(
        body,
        "<p class=\"stars\" role=\"img\" aria-label=\"{} of {MAX_STARS} stars\">",
        stars.min(MAX_STARS)
    );
    for position in 0..MAX_STARS {
        let fill = if position < stars { color } else { "none" };
        let _infallible = write!(
            body,
            "<svg viewBox=\"0 0 24 24\" aria-hidden=\"true\"><path fill=\"{fill}\" \
             stroke=\"{color}\" stroke-width=\"1.5\" d=\"M12 2.5l2.9 6.2 6.8.8-5 4.6 1.3 6.7-6-3.4-6 \
             3.4 1.3-6.7-5-4.6 6.8-.8z\"/></svg>"
        );
    }
    body.push_str("</p>");
}

fn error_text(body: &mut String, what: &str, error: &str) {
    push(body, "<h3>Error fetching ", format!("{what}!"), "</h3>");
    push(body, "<p class=\"error\">", error, "</p>");
}

/// Adds `value`, escaped, between two pieces of markup.
fn push(body: &mut String, before: &str, value: impl AsRef<str>, after: &str) {
    body.push_str(before);
    body.push_str(&escaped(value.as_ref()));
    body.push_str(after);
}

/// A field as text; empty when it is absent.
fn text_of(value: &Value, field: &str) -> String {
    match value.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviews(rating: Option<Value>) -> Result<Value, String> {
        let mut review = json!({"reviewer": "Reviewer1", "text": "<b>good</b>"});
        if let (Some(rating), Some(fields)) = (rating, review.as_object_mut()) {
            fields.insert("rating".into(), rating);
        }
        Ok(json!({"podname": "reviews-v2-1", "clustername": "null", "reviews": [review]}))
    }

    #[test]
    fn stars_are_red_black_or_none() {
        let cases = [
            (Some(json!({"stars": 4, "color": "red"})), "fill=\"#c5221f\"", 4),
            (Some(json!({"stars": 5, "color": "black"})), "fill=\"#000000\"", 5),
            (None, "<svg", 0),
        ];
        for (rating, mark, count) in cases {
            let page = product_page(None, &Ok(json!({})), &reviews(rating));
            assert_eq!(page.matches(mark).count(), count, "{mark}");
        }
    }

    #[test]
    fn text_of_other_services_is_escaped() {
        let page = product_page(None, &Err("<i>".into()), &reviews(None));
        assert!(!page.contains("<b>good") && !page.contains("<i>"));
        assert!(page.contains("reviews-v2-1(null)"));
    }

    #[test]
    fn a_user_sees_the_name_and_others_a_form() {
        let page = |user| product_page(user, &Ok(json!({})), &reviews(None));
        assert!(page(Some("jason")).contains("jason") && !page(Some("jason")).contains("<input"));
        assert!(page(None).contains("name=\"username\""));
    }
}

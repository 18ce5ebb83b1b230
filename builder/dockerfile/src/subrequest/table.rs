//! Columns of text, as Go's `text/tabwriter` aligns them.

/// Rows as lines. Each column but the last is as wide as its widest cell and `gap` more; the last one is as it is.
pub(super) fn table<const N: usize>(rows: &[[String; N]], gap: usize) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        for (i, (width, cell)) in widths.iter().zip(row).enumerate() {
            out.push_str(cell);
            if i + 1 < N {
                out.extend(std::iter::repeat_n(' ', width + gap - cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

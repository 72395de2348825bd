(** The worst case of a loss that moves: two linear losses on a triangle. *)

From FrankWolfe Require Import setting assumptions lemmas.

(** Pairs of numbers as a space. *)
Definition dot (x y : R * R) : R := fst x * fst y + snd x * snd y.

Lemma dot_nonneg x : 0 <= dot x x.
Proof. unfold dot. nra. Qed.

Definition plane : InnerProductSpace.
Proof.
  refine {|
    vector := R * R;
    plus := fun x y => (fst x + fst y, snd x + snd y);
    scale := fun a x => (a * fst x, a * snd x);
    inner := dot;
    inner_nonneg := dot_nonneg;
  |}; intros; unfold dot; simpl; ring.
Defined.

Definition triangle (x : plane) : Prop := 0 <= fst x /\ 0 <= snd x /\ fst x + snd x <= 1.

(** [M (1 - x - y)], and from the second iteration on [M (1 - x - y) + up x - down y]. *)
Definition moving (M up down : R) : Problem plane := {|
  K := triangle;
  L := fun t (x : plane) =>
    match t with
    | S (S _) => M * (1 - fst x - snd x) + up * fst x - down * snd x
    | _ => M * (1 - fst x - snd x)
    end;
  G := fun t (_ : plane) => (match t with S (S _) => (up - M, - down - M) | _ => (- M, - M) end : plane);
  beta := 0;
|}.

(** From (0, 0) to (1, 0), and on to (0, 1). *)
Definition corner (t : nat) : plane := match t with S (S (S _)) => (0, 1) | S (S _) => (1, 0) | _ => (0, 0) end.

(** Two whole steps. *)
Definition moving_run (M up down : R) : Run plane := {|
  T := 2;
  W := corner;
  V := fun t => corner (S t);
  eps := fun _ => 0;
  eta := fun _ => 1;
  gap := fun t => match t with S (S _) => up + down | _ => M end;
|}.

(** * Proof *)

Section Moving.
  Variables (M up down : R).
  Hypotheses (M_positive : 0 < M) (up_nonneg : 0 <= up) (down_nonneg : 0 <= down).

  Local Notation P := (moving M up down).
  Local Notation run := (moving_run M up down).

  Lemma two_iterations t : iteration run t -> t = 1%nat \/ t = 2%nat.
  Proof. intros (first & last). simpl in last. lia. Qed.

  Lemma corner_in_triangle t : triangle (corner t).
  Proof. destruct t as [| [| [| t]]]; unfold triangle; simpl; lra. Qed.

  Lemma between_nonneg x y s : 0 <= x -> 0 <= y -> 0 <= s <= 1 -> 0 <= x + s * (y + -1 * x).
  Proof. intros Hx Hy range. nra. Qed.

  Lemma triangle_is_convex : Convex_set P.
  Proof.
    intros X Y s (H & H' & H'') (I & I' & I'') between. split; [| split]; simpl; try now apply between_nonneg.
    assert (0 <= 1 - fst X - snd X + s * (1 - fst Y - snd Y + -1 * (1 - fst X - snd X))) by (apply between_nonneg; lra). lra.
  Qed.

  Lemma moving_setting : Setting P run.
  Proof.
    split.
    - simpl. lia.
    - exact triangle_is_convex.
    - split; [simpl; lra |]. intros t X Y _ _. destruct t as [| [| t]]; simpl; unfold dot; simpl; lra.
    - intros t range. split; [apply corner_in_triangle |]. intros Z (H & H' & H'').
      destruct (two_iterations t range) as [-> | ->]; unfold gradient; simpl; unfold dot; simpl; nra.
    - intros t range. exists (corner (S t)). split; [apply corner_in_triangle |].
      destruct (two_iterations t range) as [-> | ->]; unfold gradient; simpl; unfold dot; simpl; lra.
  Qed.

  Lemma triangle_diameter : Diameter P 2.
  Proof.
    intros (x & y) (x' & y') (H & H' & H'') (I & I' & I''). simpl in *. unfold dot. simpl. nra.
  Qed.

  Lemma moving_steps : FrankWolfeStep P run true.
  Proof.
    split; [apply corner_in_triangle |]. intros t range. split; [simpl; lra |]. split; [apply corner_in_triangle |].
    destruct (two_iterations t range) as [-> | ->]; simpl; lra.
  Qed.

  Lemma moving_initial_gap : Initial_gap P run M.
  Proof. intros Z (H & H' & H''). simpl. nra. Qed.

  (** The loss rises by at most [up], and falls by at most [down]. *)
  Lemma moving_drift t X : K P X -> - down <= L P (S t) X - L P t X <= up.
  Proof. intros (H & H' & H''). destruct t as [| [| t]]; simpl; split; nra. Qed.

  Lemma moving_mean_gap : mean (gap run) (T run) = (M + up + down) / 2.
  Proof. unfold mean. simpl. field. Qed.
End Moving.

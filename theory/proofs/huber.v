(** The Huber function, in which the nonconvex rates are written: quadratic below [C], linear above.

    [phi g C] is the decrease that a step along a gap [g] is sure of, for the curvature [C = beta D^2]. *)

From FrankWolfe Require Import setting lemmas.

(** [max over s in [0, 1] of s g - s^2 C/2] *)
Definition phi (g C : R) : R := if Rle_dec g C then g ^ 2 / (2 * C) else g - C / 2.

(** The gap [g] with [phi g C = y]. *)
Definition phi_inverse (y C : R) : R := if Rle_dec y (C / 2) then sqrt (2 * C * y) else y + C / 2.

(** The step that minimises [M/(e n) + C e/2] over (0, 1]: [min(1, sqrt(2 M/(C n)))]. *)
Definition best_fixed (M C n : R) : R := if Rle_dec (C * n) (2 * M) then 1 else sqrt (2 * M / (C * n)).

(** ** phi is a maximum *)

Lemma phi_is_above g C s : 0 <= C -> 0 <= g -> 0 <= s <= 1 -> s * g - s ^ 2 * (C / 2) <= phi g C.
Proof.
  intros HC Hg Hs. unfold phi. destruct (Rle_dec g C) as [below | above].
  - destruct (Req_dec C 0) as [flat | bent].
    + replace g with 0 by lra. rewrite flat. unfold Rdiv. lra.
    + (* (g - s C)^2 >= 0 *)
      replace (s * g - s ^ 2 * (C / 2)) with (g ^ 2 / (2 * C) - (g - s * C) ^ 2 * / (2 * C)) by (field; lra).
      pose proof (pow2_ge_0 (g - s * C)).
      assert (0 < / (2 * C)) by (apply Rinv_0_lt_compat; lra).
      assert (0 <= (g - s * C) ^ 2 * / (2 * C)) by (apply Rmult_le_pos; lra). lra.
  - (* (1 - s) (g - C (1 + s)/2) >= 0, as g >= C *)
    assert (0 <= (1 - s) * (g - C * (1 + s) / 2)); [apply Rmult_le_pos; nra | nra].
Qed.

(** The step at which that maximum is reached. *)
Definition peak (g C : R) : R := if Rle_dec C g then 1 else g / C.

Lemma peak_in_range g C : 0 <= C -> 0 <= g -> 0 <= peak g C <= 1.
Proof.
  intros HC Hg. unfold peak. destruct (Rle_dec C g); [lra |]. assert (0 < C) by lra. split.
  - apply Rmult_le_pos; [assumption |]. left. now apply Rinv_0_lt_compat.
  - apply Rmult_le_reg_r with C; [assumption |]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
Qed.

Lemma phi_at_its_peak g C : 0 <= C -> 0 <= g -> phi g C = peak g C * g - peak g C ^ 2 * (C / 2).
Proof.
  intros HC Hg. unfold phi, peak. destruct (Rle_dec g C), (Rle_dec C g); try lra.
  - replace g with C by lra. destruct (Req_dec C 0) as [-> | bent]; [unfold Rdiv; lra | field; lra].
  - field; lra.
Qed.

(** ** Jensen *)

Lemma phi_of_a_mean f n C : (1 <= n)%nat -> 0 <= C -> (forall t, (1 <= t <= n)%nat -> 0 <= f t) ->
  phi (mean f n) C <= mean (fun t => phi (f t) C) n.
Proof.
  intros some HC above. pose proof (horizon_positive n some) as positive.
  assert (nonneg : 0 <= mean f n).
  { apply Rmult_le_pos; [now apply sum_nonneg |]. left. now apply Rinv_0_lt_compat. }
  set (s := peak (mean f n) C). pose proof (peak_in_range _ C HC nonneg) as range. fold s in range.
  rewrite phi_at_its_peak by assumption. fold s.
  (* s mean f - s^2 C/2 = mean (s f - s^2 C/2) <= mean phi(f) *)
  assert (line : sum (fun t => s * f t - s ^ 2 * (C / 2)) n <= sum (fun t => phi (f t) C) n).
  { apply sum_le. intros t inside. apply phi_is_above; auto. }
  rewrite sum_minus, sum_scale, sum_constant in line.
  unfold mean. apply Rmult_le_reg_r with (INR n); [assumption |].
  replace (sum (fun t => phi (f t) C) n / INR n * INR n) with (sum (fun t => phi (f t) C) n) by (field; lra).
  replace ((s * (sum f n / INR n) - s ^ 2 * (C / 2)) * INR n) with (s * sum f n - INR n * (s ^ 2 * (C / 2))) by (field; lra).
  assumption.
Qed.

(** ** phi and its inverse *)

Lemma phi_inverse_bounds g y C : 0 <= C -> 0 <= g -> 0 <= y -> phi g C <= y -> g <= phi_inverse y C.
Proof.
  intros HC Hg Hy. unfold phi, phi_inverse.
  destruct (Rle_dec g C) as [below | above], (Rle_dec y (C / 2)) as [small | large]; intros bound; try lra.
  destruct (Req_dec C 0) as [flat | bent]; [rewrite flat, Rmult_0_r, Rmult_0_l, sqrt_0; lra |].
  (* g^2 <= 2 C y *)
  assert (square : g ^ 2 <= 2 * C * y).
  { apply Rmult_le_compat_l with (r := 2 * C) in bound; [| lra].
    replace (2 * C * (g ^ 2 / (2 * C))) with (g ^ 2) in bound by (field; lra). assumption. }
  rewrite <- (sqrt_pow2 g Hg). apply sqrt_le_1_alt. assumption.
Qed.

(** ** The tuned fixed step reaches it *)

Section Tuned.
  Variables (M C n : R).
  Hypotheses (M_nonneg : 0 <= M) (C_nonneg : 0 <= C) (n_positive : 0 < n).

  Lemma best_fixed_in_range : 0 < M -> 0 < best_fixed M C n <= 1.
  Proof.
    intros M_positive. unfold best_fixed. destruct (Rle_dec (C * n) (2 * M)); [lra |].
    assert (0 < C * n) by lra. split.
    - apply sqrt_lt_R0. apply Rdiv_lt_0_compat; lra.
    - rewrite <- sqrt_1. apply sqrt_le_1_alt. apply Rmult_le_reg_r with (C * n); [assumption |].
      unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
  Qed.

  Lemma best_fixed_is_a_minimum : 0 < C -> best_fixed M C n = Rmin 1 (sqrt (2 * M / (C * n))).
  Proof.
    intros bent. unfold best_fixed. assert (0 < C * n) by (apply Rmult_lt_0_compat; lra).
    destruct (Rle_dec (C * n) (2 * M)) as [short | long].
    - rewrite Rmin_left; [reflexivity |]. rewrite <- sqrt_1 at 1. apply sqrt_le_1_alt.
      apply Rmult_le_reg_r with (C * n); [assumption |]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
    - rewrite Rmin_right; [reflexivity |]. rewrite <- sqrt_1 at 1. apply sqrt_le_1_alt.
      apply Rmult_le_reg_r with (C * n); [assumption |]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
  Qed.

  (** Where [M = 0] and [C > 0] the tuned step is none, and there is nothing to divide by. *)
  Lemma best_fixed_reaches_phi_inverse : 0 < best_fixed M C n ->
    M / (best_fixed M C n * n) + C * best_fixed M C n / 2 = phi_inverse (M / n) C.
  Proof.
    assert (sides : M / n <= C / 2 <-> 2 * M <= C * n).
    { split; intros side.
      - apply Rmult_le_compat_r with (r := 2 * n) in side; [| lra].
        replace (M / n * (2 * n)) with (2 * M) in side by (field; lra). lra.
      - apply Rmult_le_reg_r with (2 * n); [lra |]. replace (M / n * (2 * n)) with (2 * M) by (field; lra). lra. }
    unfold best_fixed, phi_inverse.
    destruct (Rle_dec (C * n) (2 * M)) as [short | long], (Rle_dec (M / n) (C / 2)) as [small | large]; intros moving.
    - (* at the border both branches say C *)
      assert (border : M = C * n / 2) by (apply sides in small; lra). rewrite border.
      replace (2 * C * (C * n / 2 / n)) with (C * C) by (field; lra). rewrite sqrt_square by lra. field; lra.
    - rewrite Rmult_1_l. lra.
    - assert (0 < C * n) by lra. assert (0 < C) by nra.
      set (e := sqrt (2 * M / (C * n))) in *.
      assert (square : e * e = 2 * M / (C * n)).
      { apply sqrt_sqrt. apply Rmult_le_pos; [lra |]. left. now apply Rinv_0_lt_compat. }
      (* M = C e^2 n/2, so that both terms are C e/2 *)
      assert (fall : M = C * (e * e) * n / 2) by (rewrite square; field; lra).
      replace (M / (e * n)) with (C * e / 2) by (rewrite fall; field; lra).
      replace (2 * C * (M / n)) with ((C * e) * (C * e)) by (rewrite fall; field; lra).
      rewrite sqrt_square by (apply Rmult_le_pos; lra). lra.
    - exfalso. apply large, sides. lra.
  Qed.
End Tuned.
